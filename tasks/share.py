"""Parts of a stage's work: what a share holds, and the order in which shards are put together.

A module of its own, because it decides what lies in a shard and so is part of the code that keys hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHARD_ROLE = "shard-"
"""Roles of the inputs that a stage is given where its work was shared out: shard-000000, shard-000001, ..."""


@dataclass(frozen=True)
class Share:
    """Part `index` of `count` parts of a stage's work; the whole of it by default."""

    index: int = 0
    count: int = 1

    def of(self, items: int) -> range:
        """The share's part of `items` things: contiguous, in their order, possibly empty."""
        return range(items * self.index // self.count, items * (self.index + 1) // self.count)


WHOLE = Share()
"""All of the work."""


def shards_in(inputs: Mapping[str, Path]) -> list[Path]:
    """Folders of the shards among a stage's inputs, in their order; empty where work is not shared out."""
    return [inputs[role] for role in sorted(inputs) if role.startswith(SHARD_ROLE)]
