"""compressed-tensors: the checkpoint that `quantize` made, for stock transformers and vLLM."""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.compressed_tensors.library import require_compressed_tensors
from resprout.tasks.compressed_tensors.types import tensors_type
from resprout.tasks.export.formats._packed import Packed

TOLERANCE_NATS = {"W8A16": 0.05, "W8A8": 0.4, "FP8": 0.4, "W4A16": 0.8}
"""Mean KL(model || checkpoint) on the prompts that a type explains, by its first part."""


class CompressedTensors(Packed):
    """A checkpoint in few bits for stock transformers and vLLM, as `quantize` made it.

    transformers unpacks the weights when they are first used: files and downloads are smaller, memory is not.
    """

    name: ClassVar[str] = "compressed-tensors"
    layouts: ClassVar[tuple[str, ...]] = ("uniform",)
    own_classes: ClassVar[bool] = False
    quantized: ClassVar[bool] = True
    adapters: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer  # with compressed-tensors installed",
        "model = AutoModelForCausalLM.from_pretrained({folder})",
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    def __init__(self, kind: str) -> None:
        self.kind = tensors_type(kind).name

    def require(self) -> None:
        """Raise BadInput where the library is not installed."""
        require_compressed_tensors()

    @property
    def tolerance_nats(self) -> float:
        """By the part of the type's name in front of its group."""
        return TOLERANCE_NATS[self.kind.partition("-")[0]]
