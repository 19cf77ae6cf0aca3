"""compressed-tensors: the checkpoint that `quantize` made, for stock transformers and vLLM."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.compressed_tensors.library import require_compressed_tensors
from resprout.tasks.compressed_tensors.types import tensors_type
from resprout.tasks.export.format import BESIDE, divergence
from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.probe import Probed, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE_NATS = {"W8A16": 0.05, "W8A8": 0.4, "FP8": 0.4, "W4A16": 0.8}
"""Mean KL(model || checkpoint) on the prompts that a type explains, by its first part."""


class CompressedTensors(HuggingFace):
    """A checkpoint in few bits for stock transformers and vLLM, as `quantize` made it.

    Checked in a child process. transformers unpacks the weights when they are first used: files and downloads
    are smaller, memory is not.
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
        self.kind = tensors_type(kind)

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The folder that `quantize` wrote."""
        return inputs[name]

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Copy the checkpoint from `source`, what `quantize` wrote."""
        for path in source.iterdir():
            if path.name != BESIDE:
                shutil.copyfile(path, folder / path.name)

    def probe(self, folder: Path, question: Question) -> Probed:
        """Answers of stock transformers in an isolated Python, where resprout is not."""
        require_compressed_tensors()
        return super().probe(folder, question)

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """Mean KL(model || checkpoint) in nats, and the share of greedy tokens that agree.

        Other prompt ids, another vocabulary, or a divergence beyond the type's tolerance raises StageFailed.
        """
        tolerance = TOLERANCE_NATS[self.kind.name.partition("-")[0]]
        return divergence(f"{self.name}:{self.kind.name}", expected, found, tolerance)
