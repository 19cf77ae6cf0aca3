"""An export of a checkpoint that `quantize` packed for transformers with a library."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.export.format import BESIDE, divergence
from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.probe import Probed, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Packed(HuggingFace):
    """A copy of the checkpoint; checked in a child process, by how far it diverges from the model."""

    name: ClassVar[str]
    kind: str
    """The name of its type."""

    @property
    @abstractmethod
    def tolerance_nats(self) -> float:
        """Mean KL(model || checkpoint) on the prompts that the type explains."""

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
        self.require()
        return super().probe(folder, question)

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """Mean KL(model || checkpoint) in nats, and the share of greedy tokens that agree.

        Other prompt ids, another vocabulary, or a divergence beyond the type's tolerance raises StageFailed.
        """
        return divergence(f"{self.name}:{self.kind}", expected, found, self.tolerance_nats)
