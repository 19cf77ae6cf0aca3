"""Why a stage of a past run was found in the cache or ran: the nearest earlier record, and what differs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, ResproutError
from resprout.flows.nearest_record import INPUT, Difference, Nearest, differences, nearest, parts_of
from resprout.flows.workspace import RUN_ID, Workspace, find
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.store.record import Record
from resprout.tasks.core.stage import StepId

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Cause:
    """A difference that lies before the stage: in the key of one that made an input."""

    stage: str
    difference: Difference


@dataclass(frozen=True)
class Explanation:
    """One stage of a run: whether it was found, its record, the nearest one before, and all that differs."""

    run_id: str
    run_name: str
    label: str
    found: bool
    record_id: str
    record: Record
    nearest: Nearest | None
    """Of a stage that ran; of one that was found its record is its own."""
    maker: str
    """Id of the run that made the nearest record, or the found one; empty where MLflow knows none."""
    causes: tuple[Cause, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        near = self.nearest
        return {
            "run": self.run_id,
            "name": self.run_name,
            "stage": self.label,
            "found": self.found,
            "record": self.record_id,
            "started": self.record.started,
            "seconds": self.record.seconds,
            "made_by_run": self.maker if self.found else self.run_id,
            "nearest": None
            if near is None
            else {"record": near.record_id, "started": near.record.started, "run": self.maker or None},
            "differences": [one.as_dict() for one in near.differences] if near is not None else [],
            "causes": [{"stage": one.stage, **one.difference.as_dict()} for one in self.causes],
        }


def explain(workspace: Workspace, reference: str, stage: str) -> Explanation:
    """Explain a stage of the run behind models:/name/3, models:/name@alias, or the id of an MLflow run.

    Raises:
        BadInput: there is no such run, or it has no such stage.
    """
    run = _parent(workspace, reference)
    stages = _stages(workspace, run)
    if stage not in stages:
        similar = difflib.get_close_matches(stage, stages, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(repr(one) for one in similar)}?" if similar else ""
        raise BadInput(
            f"the run {run.info.run_name} ({run.info.run_id}) has no stage '{stage}'; "
            f"{hint or 'give one of ' + ', '.join(stages)}"
        )
    tags = stages[stage].data.tags
    store, record_id, found = workspace.store, tags[RECORD], tags["resprout.cached"] == "true"
    record, step = store.get_record(record_id), StepId(tags["resprout.stage"], tags.get("resprout.role", ""))
    own = {one.data.tags[RECORD] for one in stages.values()}
    roles = {one.data.tags[RECORD]: one.data.tags.get("resprout.role", "") for one in stages.values()}
    near = None
    if not found:
        records = dict(store.records())
        earlier = [
            (identity, one)
            for identity, one in records.items()
            if identity not in own and one.stage == record.stage and one.started <= record.started
        ]
        # The pruned model's scores are held against those of an earlier pruned model, if there is one.
        makers = _makers(record, records)
        alike = [(identity, one) for identity, one in earlier if _makers(one, records) == makers]
        near = nearest(step, parts_of(record), alike or earlier)
    maker = record_id if found else near.record_id if near is not None else ""
    return Explanation(
        run.info.run_id,
        run.info.run_name,
        stage,
        found,
        record_id,
        record,
        near,
        _maker(workspace, maker) if maker else "",
        tuple(_causes(workspace, record, near.record, roles)) if near is not None else (),
    )


def _parent(workspace: Workspace, reference: str) -> Run:
    """The whole run behind a reference, also where that is the run of one of its stages."""
    tracker = workspace.tracker
    if RUN_ID.match(reference):
        run = tracker.run(reference)
        parent = run.data.tags.get(PARENT)
        return tracker.run(parent) if parent else run
    found = find(workspace, reference)
    if not found.run:
        raise BadInput(
            f"MLflow names no run for {reference}; give models:/name/3, models:/name@alias, or the id of an "
            "MLflow run"
        )
    return tracker.run(found.run)


def _stages(workspace: Workspace, run: Run) -> dict[str, Run]:
    """The runs of its stages by label, in their order; one that ran before one that was found afterwards."""
    having = f"tags.`{PARENT}` = '{run.info.run_id}'"
    found = [
        one
        for one in search.runs(workspace.tracker, having, [run.info.experiment_id])
        if {RECORD, "resprout.stage", "resprout.cached"} <= one.data.tags.keys()
    ]
    found.sort(key=lambda one: (one.info.start_time, one.data.tags["resprout.cached"]))
    stages: dict[str, Run] = {}
    for one in found:
        stages.setdefault(one.info.run_name, one)
    if not stages:
        raise BadInput(
            f"the run {run.info.run_name} ({run.info.run_id}) has no stages; give a run of `resprout run`"
        )
    return stages


def _makers(record: Record, records: Mapping[str, Record]) -> dict[str, str]:
    """By role the stage that made each input."""
    return {one.role: records[one.record].stage for one in record.parents if one.record in records}


def _maker(workspace: Workspace, record_id: str) -> str:
    """Id of the whole run that made a record; empty where MLflow does not know it."""
    made = workspace.tracker.producer(record_id)
    return made.data.tags.get(PARENT, made.info.run_id) if made is not None else ""


def _causes(
    workspace: Workspace, record: Record, before: Record, roles: Mapping[str, str]
) -> Iterator[Cause]:
    """What differs in the keys behind the inputs that differ, each once, where it began."""
    seen: set[tuple[str, str]] = set()
    todo = [(record, before)]
    while todo:
        now, then = todo.pop()
        old = {one.role: one for one in then.parents}
        for parent in now.parents:
            other = old.get(parent.role)
            if other is None or other.digest == parent.digest or (parent.record, other.record) in seen:
                continue
            seen.add((parent.record, other.record))
            try:
                pair = workspace.store.get_record(parent.record), workspace.store.get_record(other.record)
            except ResproutError:
                # Collected since; what lay behind it is not known any more.
                continue
            step = StepId(pair[0].stage, roles.get(parent.record, ""))
            if pair[1].stage != step.stage:
                yield Cause(step.stage, Difference("made by stage", pair[1].stage, step.stage))
                continue
            todo.append(pair)
            for one in differences(step, *map(parts_of, pair)):
                if not one.part.startswith(INPUT):
                    yield Cause(" ".join(filter(None, step)), one)
