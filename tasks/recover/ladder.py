"""A ladder of recoveries: rungs of growing cost, each going on from what the one before left.

A rung is skipped, and hands its model on as it is, where the gate is met, where the budget is spent, or where
the rung before gained so little that the next, which costs more, would not pay.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resprout.configs.schema import BudgetConfig, RecoverConfig, Rung
from resprout.tasks.core.job import Job, Progress

FILE = "ladder.json"
GROWTH = 3
"""A rung may take so many times what the one before may: of three the last has 9/13 of the budget."""
PAYS = 0.005
"""Least share of the held-out loss that a rung must have gained for the next one to pay."""
LEAST_SECONDS = 10.0
"""Budget below which nothing is begun."""


Recover = Callable[[Job[RecoverConfig], Mapping[str, Path], Path, Progress], Mapping[str, float]]
"""Recovers into a folder by the method of the section, and gives the metrics."""


@dataclass(frozen=True)
class Climbed:
    """A rung that is done: what it cost, the held-out loss around it, and why it was skipped where it was."""

    method: str
    seconds: float = 0.0
    tokens: float = 0.0
    held_out_first: float | None = None
    held_out_last: float | None = None
    skipped: str = ""


def rungs(config: RecoverConfig, gated: bool) -> list[Rung]:
    """The rungs of a section that has a ladder, in their order; `gated`: a gate may end the climb."""
    names = config.methods if gated or config.ladder != "auto" else config.methods[-1:]
    parts = [GROWTH**place for place in range(len(names))]
    values = {name: getattr(config, name) for name in config.model_fields_set}
    return [
        Rung(**{**values, "method": name}, number=place + 1, share=part / sum(parts))
        for place, (name, part) in enumerate(zip(names, parts, strict=True))
    ]


def read(folder: Path) -> list[Climbed]:
    """The rungs that were climbed before, from the artifact of the last of them."""
    return [Climbed(**one) for one in json.loads((folder / FILE).read_text(encoding="utf-8"))]


def write(climbed: Sequence[Climbed], folder: Path) -> None:
    """Keep the rungs that were climbed, the last of which is this one."""
    text = json.dumps([asdict(one) for one in climbed], indent=1, sort_keys=True)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def why_not(job: Job[Rung], inputs: Mapping[str, Path], before: Sequence[Climbed]) -> str:
    """Why the rung is not climbed, in words; empty where it is."""
    config = job.config
    if "verdict" in inputs and json.loads((inputs["verdict"] / "gate.json").read_text())["passed"]:
        return "the gate is met"
    left = budget_of(config, before)
    if left.tokens is not None and left.tokens < config.batch_tokens:
        return "the budget is spent"
    if left.limit_seconds is not None and left.limit_seconds < LEAST_SECONDS:
        return "the budget is spent"
    last = before[-1] if before else None
    if last is not None and last.method == config.method and last.held_out_first and last.held_out_last:
        gained = 1 - last.held_out_last / last.held_out_first
        if gained < PAYS:
            return f"the rung before gained {gained:.1%} of the held-out loss, less than {PAYS:.1%}"
    return ""


def budget_of(config: Rung, before: Sequence[Climbed]) -> BudgetConfig:
    """The rung's budget: its share of the whole budget and what earlier rungs left of theirs."""
    assert config.budget is not None
    whole, tokens = config.budget.limit_seconds, config.budget.tokens
    spent, trained = (sum(getattr(one, name) for one in before) for name in ("seconds", "tokens"))
    # What the rungs before left of their shares is this one's too.
    upto = sum(1 / GROWTH**place for place in range(config.number)) * config.share
    seconds = None if whole is None else max(1e-9, min(1.0, upto) * whole - spent)
    left = None if tokens is None else max(1, int(min(1.0, upto) * tokens - trained))
    return BudgetConfig(seconds=seconds, tokens=left)


def climb(
    job: Job[Rung], inputs: Mapping[str, Path], workdir: Path, progress: Progress, recover: Recover
) -> None:
    """Recover by the rung's method and its own budget, or hand the model on as it is."""
    config, before = job.config, read(inputs["before"]) if "before" in inputs else []
    if reason := why_not(job, inputs, before):
        hand_on(inputs["pruned"], workdir)
        (workdir / "metrics.json").write_text('{"recovery_steps": 0}\n', encoding="utf-8")
        write([*before, Climbed(config.method, skipped=reason)], workdir)
        return
    from resprout.tasks.recover.checkpoint import seconds_before

    # A rung that was killed goes on, and what it had taken counts.
    began = time.monotonic() - seconds_before(job.checkpoints)
    trained = int(sum(one.tokens for one in before))
    own = config.model_copy(update={"budget": budget_of(config, before), "trained_tokens": trained})
    metrics = recover(replace(job, config=own), inputs, workdir, progress)
    done = Climbed(
        config.method, round(time.monotonic() - began, 1), metrics.get("recovery_tokens", 0.0),
        metrics.get("held_out_first"), metrics.get("held_out_last"),
    )  # fmt: skip
    write([*before, done], workdir)


def hand_on(model: Path, workdir: Path) -> None:
    """The model as it is, without a second copy of its bytes where the disk allows."""
    folder = workdir / "model"
    folder.mkdir()
    for path in model.iterdir():
        if path.is_file():
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)
