"""The settings that a stage's function is given beside its inputs, and the share of the work that it does.

Both decide bytes, so this module is part of the code that cache keys hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

C = TypeVar("C")

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


@dataclass(frozen=True)
class Job(Generic[C]):
    """A stage's settings: `config` is its section, `dtype` and `device` are torch's names."""

    config: C
    seed: int = 17
    device: str = "cpu"
    dtype: str = "bfloat16"
    trust_remote_code: bool = False
    share: Share = WHOLE
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of the inputs' artifacts by role, filled in when the stage runs."""


class Progress(Protocol):
    """Called by a stage as it goes: `done` of `total` units of `what` (say "layers") are finished."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """Progress that no one watches."""
