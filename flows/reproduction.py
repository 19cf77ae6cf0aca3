"""What a reproduced run made, held against what the record says the original made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from resprout.configs.errors import ResproutError
from resprout.configs.result import StageResult
from resprout.flows.original import Original
from resprout.flows.surroundings import Change
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.compare.artifacts import Difference, compare, relative

TIMED = ("measure", "report")
"""Labels of stages whose content holds timings, which no two runs share."""
SCORED = "evaluate "
KL = "_kl_to_dense"
"""Part of the names of scores that are a Kullback-Leibler divergence, in nats."""
ACQUIRED = "acquire "
"""Labels of stages that do not run again: what they made is taken from the store, byte by byte."""
Outcome = Literal["identical", "within_tolerance", "different"]


@dataclass(frozen=True)
class Compared:
    """A stage's digest in the record (None: the record names none) and the one that was made now."""

    label: str
    recorded: str | None
    made: str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.made


@dataclass(frozen=True)
class Verdict:
    """`outcome`, the stages, how the first that differs does so, and the metrics that lie furthest apart."""

    outcome: Outcome
    stages: list[Compared]
    not_compared: list[str]
    first: str | None = None
    differences: list[Difference] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "outcome": self.outcome,
            "stages": [
                {"stage": one.label, "recorded": one.recorded, "made": one.made, "same": one.same}
                for one in self.stages
            ],
            "not_compared": self.not_compared,
            "first_difference": self.first,
            "differences": [{"file": one.path, "says": one.says} for one in self.differences],
            "metrics_apart": self.metrics,
            "tolerance": self.tolerance,
        }


def judge(
    run: Original,
    made: Sequence[StageResult],
    before: ArtifactStore,
    now: ArtifactStore,
    elsewhere: Sequence[Change],
    tolerance: float,
) -> Verdict:
    """Hold the stages that ran again against the record, in the order in which they ran.

    Where the surroundings differ, scores within `tolerance` (relative) and the same verdict of the gate count
    as reproduced; where they do not, only equal digests do.
    """
    found = {stage.name: stage.artifact.digest for stage in made}
    labels = [*found, *(name for name in run.digests if name not in found and not name.startswith(ACQUIRED))]
    compared = [
        Compared(label, run.digests.get(label), found.get(label))
        for label in labels
        if not label.startswith(TIMED)
    ]
    timed = [label for label in labels if label.startswith(TIMED)]
    first = next((one for one in compared if not one.same), None)
    if first is None:
        return Verdict("identical", compared, timed)
    apart = _metrics(compared, before, now)
    close = (
        bool(elsewhere)
        and apart is not None
        and all(value <= tolerance for value in apart.values())
        and _gate(first_of(compared, "gate"), before, now)
    )
    return Verdict(
        "within_tolerance" if close else "different",
        compared,
        timed,
        first.label,
        _differences(first, before, now),
        apart or {},
        tolerance,
    )


def first_of(compared: Sequence[Compared], label: str) -> Compared | None:
    """The stage with this label."""
    return next((one for one in compared if one.label == label), None)


def _differences(stage: Compared, before: ArtifactStore, now: ArtifactStore) -> list[Difference]:
    if stage.recorded is None or stage.made is None:
        when = "now" if stage.recorded is None else "then"
        return [Difference("", f"the stage ran {when} only")]
    try:
        with before.open(stage.recorded) as first, now.open(stage.made) as second:
            return compare(first, second)
    except ResproutError as error:
        # Retention may have freed it: that it differs is known all the same.
        return [Difference("", f"by how much is not known: {error}")]


def _metrics(
    compared: Sequence[Compared], before: ArtifactStore, now: ArtifactStore
) -> dict[str, float] | None:
    """How far each score of each model lies apart; None where one cannot be compared."""
    found: dict[str, float] = {}
    for stage in compared:
        if not stage.label.startswith(SCORED) or stage.same:
            continue
        if stage.recorded is None or stage.made is None:
            return None
        try:
            ours = json.loads(before.read(stage.recorded, "metrics.json"))
        except ResproutError:
            return None
        theirs = json.loads(now.read(stage.made, "metrics.json"))
        for name in sorted({*ours, *theirs}):
            both = name in ours and name in theirs
            apart = _apart(name, ours[name], theirs[name]) if both else float("inf")
            if apart:
                found[f"{stage.label.removeprefix(SCORED)}.{name}"] = apart
    return found


def _apart(name: str, ours: float, theirs: float) -> float:
    """Relative difference of a score; of a divergence, which is the logarithm of a ratio, that of the ratio.

    So 0.01 nats count as much as one part in a hundred of a perplexity, and a divergence near zero, of which
    two processors share no digit, as little as it is.
    """
    if KL in name and math.isfinite(ours - theirs):
        return -math.expm1(-abs(ours - theirs))
    return relative(ours, theirs)


def _gate(stage: Compared | None, before: ArtifactStore, now: ArtifactStore) -> bool:
    """Whether the gate said the same both times."""
    if stage is None or stage.same:
        return True
    if stage.recorded is None or stage.made is None:
        return False
    try:
        ours = json.loads(before.read(stage.recorded, "gate.json"))
    except ResproutError:
        return False
    return bool(ours["passed"] == json.loads(now.read(stage.made, "gate.json"))["passed"])
