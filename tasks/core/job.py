"""The settings that a stage's function is given beside its inputs, and the share of the work that it does.

Both decide bytes, so this module is part of the code that cache keys hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

C_co = TypeVar("C_co", covariant=True)

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


class Checkpoints(Protocol):
    """Where one call of a stage keeps unfinished work, under its key, until its artifact is published.

    A checkpoint is a folder of plain files (safetensors and JSON), and is either there as a whole or not.
    """

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint as a local folder; None where there is none.

        Raises:
            Transient: the store cannot be reached.
        """
        ...

    def save(self, folder: Path, step: int) -> None:
        """Keep the files of `folder`, which is left empty, as that of `step`; of earlier ones the last stays.

        A store that is down costs this checkpoint, and not the work: that is logged.

        Raises:
            StageFailed: the disk is full, or another process has taken the stage over.
        """
        ...


class Watch(Protocol):
    """Called by a stage with numbers that people follow while it runs, as curves over `step`.

    It costs nothing and never fails. A name that history.jsonl has too means the same there; metrics.json has
    none of them, since its numbers are of no step.
    """

    def __call__(self, step: int, values: Mapping[str, float]) -> None: ...


def unwatched(step: int, values: Mapping[str, float]) -> None:
    """Numbers that no one follows."""


@dataclass(frozen=True)
class Job(Generic[C_co]):
    """A stage's settings: `config` is its section, `dtype` and `device` are torch's names."""

    config: C_co
    seed: int = 17
    device: str = "cpu"
    dtype: str = "bfloat16"
    trust_remote_code: bool = False
    max_memory: Mapping[str, int] | None = field(default=None, compare=False)
    """None: models lie on `device` as a whole. Else on whatever is there (`model.device_map: auto`), with at
    most these bytes of weights by device. Layers compute alike wherever they lie: no part of a key."""
    share: Share = WHOLE
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of the inputs' artifacts by role, filled in when the stage runs."""
    checkpoints: Checkpoints | None = field(default=None, compare=False)
    """None: an interrupted call begins again. Filled in for a stage that `resumes` when it runs."""
    watch: Watch = field(default=unwatched, compare=False)


class Progress(Protocol):
    """Called by a stage as it goes: `done` of `total` units of `what` (say "layers") are finished."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """Progress that no one watches."""
