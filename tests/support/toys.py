"""Stages small enough to read, for the tests of what all stages share."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.core.stage import stage
from resprout.tasks.core.termination import deferred_termination

DOOR = "resprout.tasks.gate.stage"
"""The code hash follows in-project modules only, so the toys stand in for one of them."""


class Knobs(BaseModel):
    """Section of a toy stage.

    Of a toy's shards `fail` fails until <log>.mended is there, `die` dies once, each waits for `seconds`.
    """

    model_config = ConfigDict(frozen=True)

    text: str = "a"
    log: str | None = None
    fail: int | None = None
    die: int | None = None
    seconds: float = 0.0

    def key_data(self) -> dict[str, Any]:
        return {"text": self.text}


def write_text(job: Job[Any], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Content of a toy stage: its knob behind its inputs'."""
    before = "".join((folder / "out.txt").read_text() for _, folder in sorted(inputs.items()))
    (workdir / "out.txt").write_text(before + job.config.text)
    (workdir / "metrics.json").write_text(f'{{"length": {len(before + job.config.text)}}}')


def write_part(job: Job[Knobs], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Content of a toy's shard: its part of the text in capitals."""
    knobs, index = job.config, job.share.index
    if knobs.text == "bad":
        raise BadInput("no shard likes this text; give another")
    if knobs.log is not None:
        with Path(knobs.log).open("a") as log:
            log.write(f"{index}\n")
    if knobs.fail == index and not Path(f"{knobs.log}.mended").exists():
        raise StageFailed(f"shard {index} fails; mend it")
    died = Path(f"{knobs.log}.died")
    if knobs.die == index and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(knobs.seconds)
    mine = job.share.of(len(knobs.text))
    (workdir / "out.txt").write_text(f"{index}:{knobs.text[mine.start : mine.stop].upper()}")


def write_whole(job: Job[Knobs], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Content of a toy that can be shared out: the text in capitals, put together or made here."""
    parts = [(folder / "out.txt").read_text().partition(":")[2] for folder in shards_in(inputs)]
    (workdir / "out.txt").write_text("".join(parts) if parts else job.config.text.upper())


class Walk(BaseModel):
    """Section of a toy that walks `steps` steps and keeps a checkpoint of each `every`-th.

    Each step is a line of <log>; before `stop_at` it waits until it is ended, once.
    """

    model_config = ConfigDict(frozen=True)

    steps: int = 6
    every: int = 2
    log: str
    stop_at: int | None = None

    def key_data(self) -> dict[str, Any]:
        return {"steps": self.steps}


def walk(job: Job[Walk], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Content of a toy that goes on from its checkpoints: a line for each step, whoever walked it."""
    knobs, kept = job.config, job.checkpoints
    assert kept is not None
    rows: list[dict[str, float]] = []
    with kept.latest() as folder:
        if folder is not None:
            rows = json.loads((folder / "rows.json").read_text())

    def save() -> None:
        scratch = workdir.parent / "state"
        scratch.mkdir(exist_ok=True)
        (scratch / "rows.json").write_text(json.dumps(rows))
        kept.save(scratch, len(rows))

    with deferred_termination() as ending:
        while len(rows) < knobs.steps and not ending.asked:
            step = len(rows) + 1
            waited = Path(f"{knobs.log}.waits")
            if step == knobs.stop_at and not waited.exists():
                waited.touch()
                while not ending.asked:
                    time.sleep(0.02)
                save()
                break
            with Path(knobs.log).open("a") as log:
                log.write(f"{step}\n")
            rows.append({"step": step, "loss": 1.0 / step})
            job.watch(step, {"loss": 1.0 / step})
            progress(step, knobs.steps, "steps")
            if step % knobs.every == 0:
                save()
    (workdir / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "metrics.json").write_text(json.dumps({"steps": len(rows)}))


for body in (write_text, write_part, write_whole, walk):
    body.__module__ = DOOR

part = replace(stage("toy-shard", kind="toy", title="toy", computes=False)(write_part), target="toys:part")
walker = replace(stage("walk", kind="toy", computes=False, resumes=True)(walk), target="toys:walker")
whole = stage("toy", kind="toy", computes=False, shard=part)(write_whole)
