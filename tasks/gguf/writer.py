"""A GGUF file of a model in memory, its weights as they are or in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.hyperparameters import write_hyperparameters
from resprout.tasks.gguf.tensors import tensors
from resprout.tasks.gguf.vocabulary import vocabulary
from resprout.tasks.models.shape import shape_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Plain = Literal["F32", "F16", "BF16"]
DTYPES: Mapping[Plain, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16
}  # fmt: skip
FREQUENCIES = "rope_freqs.weight"


def plain_type(model: PreTrainedModel) -> Plain:
    """The type that holds the model's weights as they are."""
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    file: Path,
    kind: Plain,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write `file`: matrices in the type `kind`, vectors in float32, one tensor in memory at a time.

    `folder` is the model's, for special tokens and chat template; `about` are further strings of metadata by
    key. Equal models give equal bytes.

    Raises:
        BadInput: llama.cpp does not know the family, or computes it without something that it has.
    """
    shape = shape_of(model.config.to_dict())
    architecture = architecture_of(shape.family.model_type, shape.family.gguf)
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture], use_temp_file=False)
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[kind])
    frequencies = write_hyperparameters(writer, shape, model.config.to_dict())
    vocabulary(tokenizer, shape.vocab).write(writer, folder)
    for key, value in (about or {}).items():
        writer.add_string(key, value)
    names = get_tensor_name_map(architecture, shape.layers)

    def all_tensors() -> list[tuple[str, Tensor]]:
        found = list(tensors(model.state_dict(), shape, names))
        return found if frequencies is None else [*found, (FREQUENCIES, frequencies)]

    for name, value in all_tensors():
        stored = _stored(value, kind)
        data = _data(stored[:0])
        writer.add_tensor_info(
            name, list(value.shape), data.dtype, value.numel() * stored.element_size(), _quantization(stored)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, value in all_tensors():
        writer.write_tensor_data(_data(_stored(value, kind)))
    writer.close()


def architecture_of(family: str, name: str | None) -> MODEL_ARCH:
    """llama.cpp's architecture of this name; BadInput where it has none for the family."""
    for architecture, known in MODEL_ARCH_NAMES.items():
        if known == name:
            return architecture
    raise BadInput(f"llama.cpp has no architecture for the family {family}; export hf instead")


def _stored(value: Tensor, kind: Plain) -> Tensor:
    return value.to(torch.float32 if value.dim() == 1 else DTYPES[kind])


def _quantization(stored: Tensor) -> GGMLQuantizationType:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return GGMLQuantizationType[names[stored.dtype]]


def _data(stored: Tensor) -> np.ndarray:
    """The bytes of a tensor as numpy holds them, which has no bfloat16."""
    value = stored.contiguous()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()
