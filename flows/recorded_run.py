"""A finished run read back from the store: its config, steps, the record of each, and device."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.load import explain
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.stages import Step, Steps
from resprout.flows.workspace import RUN_ID, STAGE, Workspace, find, report_of
from resprout.infra.licences import Credit
from resprout.infra.lineage import Node, tree
from resprout.infra.store import tombstones
from resprout.infra.store.record import ArtifactRef, Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.stage import StepId
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.compatibility import resolve


@dataclass(frozen=True)
class RecordedRun:
    """A run: its steps, the record of each that its report was made from, each step's digest by label."""

    record_id: str
    steps: Steps
    nodes: Mapping[StepId, Node]
    digests: dict[str, str]
    device: str

    @property
    def config(self) -> RunConfig:
        return self.steps.config

    @property
    def records(self) -> list[Record]:
        """Records of the stages that run again."""
        return [node.record for node in self.nodes.values() if node.record.parents]

    def inputs(self, store: ArtifactStore) -> dict[Step, ArtifactRef]:
        """The artifacts that the run began with."""
        began = self.steps[: self.steps.acquisitions]
        return {step: ref for step in began if (ref := self.ref(store, step.id)) is not None}

    def ref(self, store: ArtifactStore, step: StepId) -> ArtifactRef | None:
        """The artifact of a step; None where its record does not lead to one."""
        return _ref(store, self.nodes[step]) if step in self.nodes else None


def recorded_run(workspace: Workspace, reference: str, device: str | None = None) -> RecordedRun:
    """The run behind a version, an export, a report, or the id of a run; `device` replaces the recorded one.

    Raises:
        BadInput: `reference` is of something else, or the record's config is of another version.
        VerificationFailed: a record or a link was changed, or has another schema.
    """
    top = tree(workspace.store, _report(workspace, reference))
    given, parents = top.record.config["config"], dict(top.parents)
    behind = [node.record for node in parents.values()]
    recorded = next((record.device for record in behind if record.device is not None), None)
    computed = device or recorded or given["model"]["device"]
    credits = [Credit(**one) for record in behind for one in record.config.get("credits", ())]
    steps = Steps(_config(given, computed, top), credits=credits)
    return RecordedRun(top.record_id, steps, _nodes(steps, top), dict(top.record.config["digests"]), computed)


def _nodes(steps: Steps, top: Node) -> dict[StepId, Node]:
    """The record of each step, from the report back through the inputs that the stages declare."""
    behind = dict(top.parents)
    # The report has the last of several steps that give one name.
    last = {step.gives: step for step in steps if step.stage.reported}
    found = {step.id: behind[name] for name, step in last.items() if name in behind}
    known = {step.id: step for step in steps}
    for step in reversed(steps):
        if step.id in found:
            behind = dict(found[step.id].parents)
            for role, slot in step.inputs.items():
                maker = known[slot.step]
                # A stage that came since is not in an older record: there the role leads to what it reads.
                while role in behind and role in maker.inputs:
                    if maker.stage.name == behind[role].record.stage:
                        break
                    maker = known[maker.inputs[role].step]
                if role in behind:
                    found.setdefault(maker.id, behind[role])
    return found


def refuse_impossible(run: RecordedRun, store: ArtifactStore, disk: Path, trust_remote_code: bool) -> None:
    """BadInput where the run cannot be made: erased or missing sources, no such device, no room on `disk`.

    The config comes from a record, so code that came with the model runs only where the caller says so too.
    """
    inputs = run.inputs(store)
    for step, ref in inputs.items():
        if (stone := tombstones.of(store.driver, store.signer, ref.digest)) is not None:
            raise BadInput(
                f"the {step.role} of this run (artifact {ref.digest}) was {stone.sentence}; without it the "
                "run cannot be made again, though `resprout lineage` still shows it"
            )
        if not store.check(ref.digest):
            raise BadInput(
                f"the {step.role} of this run (artifact {ref.digest}) is not whole in {store.root_uri}; "
                "restore it from a backup"
            )
    (dense,) = (ref for step, ref in inputs.items() if step.leaves is not None)
    if run.config.model.trust_remote_code and not trust_remote_code:
        raise BadInput(
            "this run used Python code that came with its model; read that code in the artifact "
            f"{dense.digest} and give --trust-remote-code to run it"
        )
    if run.config.evaluate.trust_task_code and not trust_remote_code:
        raise BadInput(
            "this run trusted Python code that its evaluation tasks name (`resprout lineage` shows which); "
            "read it and give --trust-remote-code to run it"
        )
    if run.device == "cuda" and preflight.device("auto") != "cuda":
        raise BadInput(
            "this run computed on cuda, which this machine or its torch does not have; give --device cpu "
            "to compare metrics instead of digests"
        )
    shape = shape_of(store.read_json(dense.digest, "config.json"))
    writes = [step.writes_model for step in run.steps]
    free = shutil.disk_usage(disk).free
    preflight.check_room(run.config, shape, disk, free, sum(writes), lambda: writes)


def hardware(store: ArtifactStore, run: RecordedRun) -> dict[str, Any]:
    """On what the speeds of the run were measured: processor, cores, memory, GPUs; empty where none were."""
    measured = next((record.content for record in run.records if record.kind == "measurement"), None)
    if measured is None or not store.check(measured):
        return {}
    return dict(store.read_json(measured, "details.json")["hardware"])


def _report(workspace: Workspace, reference: str) -> str:
    """Record id of the report that a reference leads to."""
    if reference.startswith("models:/") or not _is_parent_run(workspace, reference):
        found = find(workspace, reference)
        tags, made = found.tags or {}, found.record
    else:
        tags, made = workspace.tracker.run(reference).data.tags, ""
    store = workspace.store
    record = store.get_record(made) if made else None
    if record is not None and record.stage == STAGE:
        return made
    report = report_of(store, tags, record)
    if report is None:
        raise BadInput(
            f"{reference} belongs to no finished run; give models:/name/3, models:/name@alias, the digest of "
            "an export or a report, or the id of a run, since only those can be reproduced"
        )
    return report


def _is_parent_run(workspace: Workspace, reference: str) -> bool:
    return bool(RUN_ID.match(reference)) and "resprout.report" in workspace.tracker.run(reference).data.tags


def _config(given: dict[str, Any], device: str, top: Node) -> RunConfig:
    """The recorded config without register and push: nothing leaves the store a second time."""
    code = top.record.code
    commit = f", commit {code['commit']}" if "commit" in code else ""
    wrote = f"resprout {code.get('resprout', 'unknown')}{commit}, on {top.record.started[:10]}"
    data = {**given, "register": None, "push": None, "model": {**given["model"], "device": device}}
    try:
        config = RunConfig.model_validate(data)
        # What a name meant then, another one may mean by now.
        resolve(config.prune)
    except ValidationError as error:
        raise BadInput(
            f"this version of resprout does not understand the recorded config; install the one that wrote "
            f"it ({wrote}): {explain(error, f'record {top.record_id}')}"
        ) from None
    except BadInput as error:
        raise BadInput(f"{error}; this run was made by {wrote}, and that version reproduces it") from None
    return config


def _ref(store: ArtifactStore, node: Node) -> ArtifactRef:
    record = node.record
    return ArtifactRef(
        kind=record.kind,
        digest=record.content,
        key=record.key,
        record=node.record_id,
        uri=store.uri(record.content),
        bytes=0,
    )
