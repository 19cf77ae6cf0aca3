"""torchao: the checkpoint that `quantize` made, for stock transformers with torchao."""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.export.formats._packed import Packed
from resprout.tasks.torchao.library import require_torchao, torchao_type

TOLERANCE_NATS = {"INT8": 0.05, "INT8-DYNAMIC": 0.4}
"""Mean KL(model || checkpoint) on the prompts that a type explains."""


class TorchAo(Packed):
    """A checkpoint in 8-bit integers for stock transformers with torchao, as `quantize` made it.

    Weights stay integers in memory too.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform",)
    own_classes: ClassVar[bool] = False
    quantized: ClassVar[bool] = True
    adapters: ClassVar[bool] = False
    name: ClassVar[str] = "torchao"
    loading: ClassVar[tuple[str, ...]] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer  # with torchao installed",
        "model = AutoModelForCausalLM.from_pretrained({folder})",
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    def __init__(self, kind: str) -> None:
        self.kind = torchao_type(kind)

    def require(self) -> None:
        """Raise BadInput where the library is not installed."""
        require_torchao()

    @property
    def tolerance_nats(self) -> float:
        """By type."""
        return TOLERANCE_NATS[self.kind]
