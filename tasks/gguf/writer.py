"""A GGUF file of a model in memory, its weights as they are or in half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    get_tensor_name_map,
)

from resprout.tasks.gguf.architecture import architecture_of
from resprout.tasks.gguf.hyperparameters import write_hyperparameters
from resprout.tasks.gguf.tensors import tensors
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.gguf.vocabulary import vocabulary
from resprout.tasks.models.shape import Shape, shape_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES: Mapping[GgufType, torch.dtype] = {
    GgufType.F32: torch.float32,
    GgufType.F16: torch.float16,
    GgufType.BF16: torch.bfloat16,
}
"""The types that hold weights as torch does."""
FREQUENCIES = "rope_freqs.weight"


def plain_type(model: PreTrainedModel) -> GgufType:
    """The type that holds the model's weights as they are."""
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    file: Path,
    kind: GgufType,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write `file`: matrices in `kind`, one of `DTYPES`, vectors in float32; one tensor is copied at a time.

    `folder` is the model's, for special tokens and chat template; `about` are further strings of metadata by
    key. Equal models give equal bytes.

    Raises:
        BadInput: llama.cpp does not know the family, or computes it without something that it has.
    """
    shape = shape_of(model.config.to_dict())
    writer = GGUFWriter(file, architecture_of(shape), use_temp_file=False)
    writer.add_type("model")
    writer.add_file_type(kind.value)
    frequencies = write_hyperparameters(writer, shape, model.config.to_dict())
    vocabulary(tokenizer, shape.vocab).write(writer, folder)
    for key, text in (about or {}).items():
        writer.add_string(key, text)
    names = get_tensor_name_map(architecture(shape), shape.layers)

    def all_tensors() -> Iterator[tuple[str, Tensor]]:
        yield from tensors(model, shape, names)
        if frequencies is not None:
            yield FREQUENCIES, frequencies

    for tensor, value in all_tensors():
        # Of no weight: each is cast once, where it is written.
        stored = _stored(value[:0], kind)
        data = _data(stored)
        writer.add_tensor_info(
            tensor,
            list(value.shape),
            data.dtype,
            value.numel() * stored.element_size(),
            _quantization(stored),
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, value in all_tensors():
        writer.write_tensor_data(_data(_stored(value, kind)))
    writer.close()


def architecture(shape: Shape) -> MODEL_ARCH:
    """The gguf package's entry of `architecture_of`, by which it names tensors."""
    name = architecture_of(shape)
    return next(one for one, known in MODEL_ARCH_NAMES.items() if known == name)


def _stored(value: Tensor, kind: GgufType) -> Tensor:
    return value.to(torch.float32 if value.dim() == 1 else DTYPES[kind])


def _quantization(stored: Tensor) -> GGMLQuantizationType:
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    return GGMLQuantizationType[kinds[stored.dtype].name]


def _data(stored: Tensor) -> np.ndarray:
    """The bytes of a tensor as numpy holds them, which has no bfloat16."""
    value = stored.contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
