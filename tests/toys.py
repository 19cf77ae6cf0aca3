"""A stage small enough to read, for the tests of what all stages share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from resprout.tasks.job import Job, Progress


class Knobs(BaseModel):
    """Section of a toy stage."""

    model_config = ConfigDict(frozen=True)

    text: str = "a"


def write_text(job: Job[Any], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Content of a toy stage: its knob behind its inputs'."""
    before = "".join((folder / "out.txt").read_text() for _, folder in sorted(inputs.items()))
    (workdir / "out.txt").write_text(before + job.config.text)
    (workdir / "metrics.json").write_text(f'{{"length": {len(before + job.config.text)}}}')


# The code hash follows in-project modules only, so the toy stands in for one of them.
write_text.__module__ = "resprout.tasks.gate.stage"
