"""Compare a run that was reproduced with its record: the environments, and the artifact of each stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from resprout.configs.errors import ResproutError
from resprout.configs.result import StageResult
from resprout.flows.recorded_run import RecordedRun
from resprout.infra import identity
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.compare.artifacts import Difference, compare, relative
from resprout.tasks.core.hardware import fingerprint

KL = "_kl_to_dense"
"""Part of the names of scores that are a Kullback-Leibler divergence, in nats."""
CODE = ("resprout", "commit", "dirty")
UNCOMMITTED = "true, so the commit does not say what ran"
Outcome = Literal["identical", "within_tolerance", "different"]


@dataclass(frozen=True)
class Change:
    """A property of the environment that was `recorded` and is now `here`."""

    name: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.name}: {self.recorded} then, {self.here} now"


def changes(records: Iterable[Record], device: str, hardware: Mapping[str, Any]) -> list[Change]:
    """Differences in code, libraries, machine, `hardware` and device, each once, in that order.

    A checkout with uncommitted changes counts as a difference, whatever its commit.
    """
    found: dict[str, list[Change]] = {"code": [], "library": [], "machine": [], "hardware": [], "device": []}

    def note(kind: str, name: str, recorded: str, here: str) -> None:
        change = Change(f"{kind} {name}".strip(), recorded, here)
        if recorded != here and change not in found[kind]:
            found[kind].append(change)

    code, machine = identity.code_identity(), identity.machine()
    for record in records:
        for name in CODE:
            here = code.get(name, "none")
            note("code", name, str(record.code.get(name, "none")), UNCOMMITTED if here == "true" else here)
        for name, version in sorted(record.libraries.items()):
            note("library", name, version, identity.library_version(name))
        for name, value in sorted(record.machine.items()):
            note("machine", name, str(value), machine.get(name, "none"))
        if record.device is not None:
            note("device", "", record.device, device)
    present = fingerprint()
    for name, value in sorted(hardware.items()):
        note("hardware", name, str(value), str(present.get(name, "none")))
    return [one for kind in found.values() for one in kind]


@dataclass(frozen=True)
class StageComparison:
    """A stage's digest in the record (None: the record names none) and the one that was made now."""

    label: str
    kind: str
    role: str
    recorded: str | None
    made: str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.made


@dataclass(frozen=True)
class Verdict:
    """`outcome`, the stages, how the first that differs does so, and the metrics that lie furthest apart."""

    outcome: Outcome
    stages: list[StageComparison]
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
    run: RecordedRun,
    made: Sequence[StageResult],
    before: ArtifactStore,
    now: ArtifactStore,
    changed: Sequence[Change],
    tolerance: float,
) -> Verdict:
    """Hold the stages that ran again against the record, in the order in which they ran.

    Where the environments differ, scores within `tolerance` (relative) and the same verdict of the gate count
    as reproduced; where they do not, only equal digests do.
    """
    found = {stage.name: stage.artifact.digest for stage in made}
    # What was acquired does not run again: it was taken from the store, byte by byte.
    ran = {step.label: step for step in run.steps[run.steps.acquisitions :]}
    labels = [label for label in dict.fromkeys([*found, *run.digests]) if label not in _acquired(run)]
    compared = [
        StageComparison(
            label, ran[label].stage.kind, ran[label].role, run.digests.get(label), found.get(label)
        )
        for label in labels
        if label in ran and not ran[label].stage.shows_time
    ]
    timed = [label for label in labels if label not in ran or ran[label].stage.shows_time]
    first = next((one for one in compared if not one.same), None)
    if first is None:
        return Verdict("identical", compared, timed)
    other_code = any(one.name.startswith("code ") for one in changed)
    apart = _metrics(compared, before, now, other_code)
    close = (
        bool(changed)
        and apart is not None
        and all(value <= tolerance for value in apart.values())
        and all(_same_verdict(one, before, now) for one in compared if one.kind == "gate")
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


def _acquired(run: RecordedRun) -> set[str]:
    return {step.label for step in run.steps[: run.steps.acquisitions]}


def _differences(stage: StageComparison, before: ArtifactStore, now: ArtifactStore) -> list[Difference]:
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
    compared: Sequence[StageComparison], before: ArtifactStore, now: ArtifactStore, other_code: bool
) -> dict[str, float] | None:
    """How far the scores of each model are apart; None where one cannot be compared.

    What `other_code` measures besides was never recorded, and is left out.
    """
    found: dict[str, float] = {}
    for stage in compared:
        if stage.kind != "scores" or stage.same:
            continue
        if stage.recorded is None or stage.made is None:
            return None
        try:
            ours = before.read_json(stage.recorded, "metrics.json")
        except ResproutError:
            return None
        theirs = now.read_json(stage.made, "metrics.json")
        for name in sorted(ours if other_code else {*ours, *theirs}):
            both = name in ours and name in theirs
            apart = _apart(name, ours[name], theirs[name]) if both else float("inf")
            if apart:
                found[f"{stage.role}.{name}"] = apart
    return found


def _apart(name: str, ours: float, theirs: float) -> float:
    """Relative difference of a score; of a divergence, which is the logarithm of a ratio, that of the ratio.

    So 0.01 nats count as much as one part in a hundred of a perplexity, and a divergence near zero, of which
    two processors share no digit, as little as it is.
    """
    if KL in name and math.isfinite(ours - theirs):
        return -math.expm1(-abs(ours - theirs))
    return relative(ours, theirs)


def _same_verdict(stage: StageComparison, before: ArtifactStore, now: ArtifactStore) -> bool:
    """Whether the gate passed both times, or neither time."""
    if stage.same:
        return True
    if stage.recorded is None or stage.made is None:
        return False
    try:
        ours = before.read_json(stage.recorded, "gate.json")
    except ResproutError:
        return False
    return bool(ours["passed"] == now.read_json(stage.made, "gate.json")["passed"])
