"""What an export format must do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.export.probe import Probed, Question


class Format(Protocol):
    """A way to write a model so that a stock tool loads it."""

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Write `model`, which was loaded from `source`, into the empty `folder`."""
        ...

    def probe(self, folder: Path, question: Question) -> Probed:
        """The stock tool's answer to the question, in a process that cannot import resprout.

        A tool that cannot load or run what was written raises StageFailed.
        """
        ...
