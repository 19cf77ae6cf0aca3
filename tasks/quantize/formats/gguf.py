"""GGUF: one file for llama.cpp, quantised by llama.cpp's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resprout.configs.blocks import block_of
from resprout.configs.presets import Layout
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.gguf.architecture import architecture_of, holds_uneven
from resprout.tasks.gguf.limits import check_settings, check_tokenizer
from resprout.tasks.gguf.types import PLAIN, UNWEIGHED, file_type, smaller
from resprout.tasks.llama_cpp.library import require_llama_cpp
from resprout.tasks.models.shape import Shape
from resprout.tasks.quantize.format import Need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Gguf:
    """A file that llama.cpp serves, in one of its types (gguf:Q4_K_M), with tokenizer and chat template.

    gguf:Q4_0:Q5_0 holds embedding and output matrix in Q5_0.
    """

    types: ClassVar[tuple[str, ...]] = (
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "Q6_K",
        "Q5_K_M",
        "Q5_K_S",
        "Q5_1",
        "Q5_0",
        "Q4_K_M",
        "Q4_K_S",
        "Q4_1",
        "Q4_0",
        "IQ4_NL",
        "IQ4_XS",
        "Q3_K_L",
        "Q3_K_M",
        "Q3_K_S",
        "IQ3_M",
        "IQ3_S",
        "Q2_K",
    )
    layerwise: ClassVar[bool] = True

    def __init__(self, kind: str) -> None:
        self.file = file_type(kind)
        self.kind = self.file.kind

    def require(self) -> None:
        """Raise BadInput where llama.cpp is not installed."""
        require_llama_cpp()

    def needs(self, config: QuantizeConfig) -> Need:
        """Importance, but of types that llama.cpp rounds without it."""
        return "importance" if config.importance and self.kind not in UNWEIGHED else ""

    def smaller(self) -> str | None:
        """The next type of those in use."""
        less = smaller(self.file)
        return None if less is None else f"gguf:{less.name}"

    def layouts(self, shape: Shape) -> tuple[Layout, ...]:
        """Both for families that llama.cpp computes as llama, whose deci has widths for each layer."""
        return ("uniform", "per_layer") if holds_uneven(shape) else ("uniform",)

    def check(self, shape: Shape) -> None:
        """Raise BadInput where llama.cpp has no architecture for the family, or none for such layers."""
        architecture_of(shape)

    def check_source(self, shape: Shape, tokenizer: Mapping[str, Any] | None) -> None:
        """Raise BadInput where llama.cpp cannot be told of the model's settings or of its tokenizer."""
        check_settings(shape, shape.config)
        if tokenizer is not None:
            check_tokenizer(tokenizer, shape.vocab)

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: Path,
        folder: Path,
        known: Mapping[str, Tensor],
        about: Mapping[str, str],
        progress: Progress,
    ) -> Mapping[str, float]:
        """Write model.gguf with config and tokenizer beside it; its bytes, and tensors of another type."""
        import torch

        from resprout.tasks.gguf.writer import plain_type, write_gguf
        from resprout.tasks.llama_cpp.model import FILE
        from resprout.tasks.llama_cpp.process import LlamaCpp
        from resprout.tasks.models.load import save_beside_weights

        save_beside_weights(model, folder, tokenizer_from=source)
        target = folder / FILE
        if self.kind in PLAIN:
            write_gguf(model, tokenizer, source, target, self.kind, about)
            return {"bytes": target.stat().st_size, "fallback_tensors": 0}
        whole = folder / "whole.gguf"
        try:
            write_gguf(model, tokenizer, source, whole, plain_type(model), about)
            with LlamaCpp(whole) as llama:
                llama.quantize(target, self.file, torch.get_num_threads(), _by_tensor(model, known))
        finally:
            whole.unlink(missing_ok=True)
        return {
            "bytes": target.stat().st_size,
            "fallback_tensors": _fallbacks(target, block_of(f"gguf:{self.kind.name}")),
        }


def _by_tensor(model: PreTrainedModel, known: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Mean squares of inputs by llama.cpp's names of the matrices."""
    from gguf import get_tensor_name_map

    from resprout.tasks.gguf.tensors import ENDINGS
    from resprout.tasks.gguf.writer import architecture
    from resprout.tasks.models.shape import shape_of

    shape = shape_of(model.config.to_dict())
    names = get_tensor_name_map(architecture(shape), shape.layers)
    found = {names.get_name(name, try_suffixes=ENDINGS): value for name, value in known.items()}
    return {name: value.numpy() for name, value in found.items() if name is not None}


def _fallbacks(file: Path, block: int) -> int:
    """Matrices whose rows the type's blocks do not fill, so that llama.cpp took another type for them."""
    from resprout.tasks.models.gguf_header import read_header

    _, tensors = read_header(file)
    return sum(len(dims) > 1 and dims[0] % block > 0 for dims in tensors.values())
