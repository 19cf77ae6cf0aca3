"""One shot: what is to go goes at once, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from resprout.tasks.prune.interfaces import Kinds, Round


@dataclass(frozen=True)
class OneShot:
    """All units go at once, and all training follows."""

    trains: ClassVar[bool] = False
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers")

    def all(self) -> list[Round]:
        """One round, in front of training."""
        return [Round(0.0, 1.0)]
