"""The @stage decorator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from resprout.tasks.job import Job, Progress

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Body(Protocol[C_contra]):
    """A stage's pure function."""

    def __call__(
        self, job: Job[Any], inputs: Mapping[str, Path], workdir: Path, progress: Progress, /
    ) -> None: ...


def no_methods(config: Any) -> list[str]:
    """The stage has no methods to choose from."""
    return []


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage: its pure function and what its cache key is made of."""

    name: str
    kind: str
    body: Callable[[Job[C], Mapping[str, Path], Path, Progress], None]
    libraries: tuple[str, ...] = ()
    methods: Callable[[C], list[str]] = no_methods
    seeded: bool = False
    computes: bool = True
    hardware: bool = False


def stage(
    name: str,
    *,
    kind: str,
    libraries: tuple[str, ...] = (),
    methods: Callable[[Any], list[str]] = no_methods,
    seeded: bool = False,
    computes: bool = True,
    hardware: bool = False,
) -> Callable[[Callable[[Job[Any], Mapping[str, Path], Path, Progress], None]], Stage[Any]]:
    """Turn a pure function into a stage."""

    def wrap(body: Callable[[Job[Any], Mapping[str, Path], Path, Progress], None]) -> Stage[Any]:
        return Stage(name, kind, body, libraries, methods, seeded, computes, hardware)

    return wrap
