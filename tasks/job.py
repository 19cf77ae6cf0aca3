"""What a stage's function is given beside its inputs: its config section, seed, device and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from resprout.tasks.share import WHOLE, Share

C = TypeVar("C")


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
    """Digests of the inputs' artifacts by role, filled in by the stage."""


class Progress(Protocol):
    """Called by a stage as it goes: `done` of `total` units of `what` (say "layers") are finished."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
