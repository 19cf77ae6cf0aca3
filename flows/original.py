"""A finished run as its record tells of it: what it was given, what each stage made, and on what it ran."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.load import explain
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.acquisition import Acquired
from resprout.flows.place import RUN_ID, Place, find
from resprout.flows.reports import STAGE, report_of
from resprout.infra.licences import Credit
from resprout.infra.lineage import Node, tree
from resprout.infra.store import tombstones
from resprout.infra.store.record import ArtifactRef, Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.evaluate.task_files import TASK_ROLE
from resprout.tasks.models.size import shape_of
from resprout.tasks.prune.resolve import resolve
from resprout.tasks.run import Forecast


@dataclass(frozen=True)
class Original:
    """A run: its config, what it began with, and the digest that each of its stages left, by label."""

    record_id: str
    config: RunConfig
    acquired: Acquired
    digests: dict[str, str]
    records: tuple[Record, ...]
    device: str

    @property
    def inputs(self) -> dict[str, ArtifactRef]:
        """What the run began with, by the role it plays."""
        given = self.acquired
        named = {
            "model": given.dense,
            "pool": given.rows,
            "evaluation text": given.text,
            "calibration text": given.calibration_text,
            "general text": given.general_text,
            "encoder": given.encoder,
            **given.tasks,
        }
        return {role: ref for role, ref in named.items() if ref is not None}


def original(place: Place, reference: str, device: str | None = None) -> Original:
    """The run behind a version, an export, a report, or the id of a run; `device` replaces the recorded one.

    Raises:
        BadInput: `reference` is of something else, or the record's config is of another version.
        VerificationFailed: a record or a link was changed, or has another schema.
    """
    top = tree(place.store, _report(place, reference))
    config, parents = top.record.config, dict(top.parents)
    planned, scored = parents["plan"], parents["dense"]
    calibration = dict(dict(planned.parents)["calibration"].parents)
    weighed = dict(planned.parents).get("scores")
    general = dict(weighed.parents).get("general") if weighed else None
    scores, chosen = (
        dict(scored.parents),
        dict(parents["selection"].parents) if "selection" in parents else {},
    )
    given = config["config"]
    computed = device or planned.record.device or given["model"]["device"]
    return Original(
        record_id=top.record_id,
        config=_config(given, computed, top),
        acquired=Acquired(
            dense=_ref(place.store, parents["source"]),
            rows=_found(place.store, chosen.get("rows")),
            text=_found(place.store, scores.get("text")),
            calibration_text=_found(place.store, calibration.get("text")),
            general_text=_found(place.store, dict(general.parents).get("text") if general else None),
            encoder=_found(place.store, chosen.get("embedder")),
            tasks={
                role: _ref(place.store, node) for role, node in scores.items() if role.startswith(TASK_ROLE)
            },
            credits=tuple(Credit(**one) for one in parents["export"].record.config.get("credits", ())),
        ),
        digests=dict(config["digests"]),
        records=tuple(
            node.record for node in top.walk() if not node.record.stage.startswith(("acquire_", STAGE))
        ),
        device=computed,
    )


def refuse_impossible(run: Original, store: ArtifactStore, disk: Path, trust_remote_code: bool) -> None:
    """BadInput where the run cannot be made: erased or missing sources, no such device, no room on `disk`.

    The config comes from a record, so code that came with the model runs only where the caller says so too.
    """
    for role, ref in run.inputs.items():
        if (stone := tombstones.of(store.driver, store.signer, ref.digest)) is not None:
            raise BadInput(
                f"the {role} of this run (artifact {ref.digest}) was {stone.sentence}; without it the run "
                "cannot be made again, though `resprout lineage` still tells of it"
            )
        if not store.check(ref.digest):
            raise BadInput(
                f"the {role} of this run (artifact {ref.digest}) is not whole in {store.root_uri}; "
                "restore it from a backup"
            )
    if run.config.model.trust_remote_code and not trust_remote_code:
        raise BadInput(
            "this run used Python code that came with its model; read that code in the artifact "
            f"{run.acquired.dense.digest} and give --trust-remote-code to run it"
        )
    if run.device == "cuda" and preflight.device("auto") != "cuda":
        raise BadInput(
            "this run computed on cuda, which this machine or its torch does not have; give --device cpu "
            "to compare metrics instead of digests"
        )
    shape = shape_of(json.loads(store.read(run.acquired.dense.digest, "config.json")))
    made = preflight.models_of(run.config)
    stages = [Forecast("", preflight.BETWEEN[0], cached=False)] * made
    free, recover = shutil.disk_usage(disk).free, run.config.recover
    preflight.check(run.config.model, shape, disk, free, lambda: stages, made, recover)


def hardware(store: ArtifactStore, run: Original) -> dict[str, Any]:
    """On what the speeds of the run were measured: processor, cores, memory, GPUs; empty where none were."""
    measured = next((digest for label, digest in run.digests.items() if label.startswith("measure")), None)
    if measured is None or not store.check(measured):
        return {}
    return dict(json.loads(store.read(measured, "details.json"))["hardware"])


def _report(place: Place, reference: str) -> str:
    """Record id of the report that a reference leads to."""
    if reference.startswith("models:/") or not _is_parent_run(place, reference):
        found = find(place, reference)
        tags, made = found.tags or {}, found.record
    else:
        tags, made = place.tracker.run(reference).data.tags, ""
    store = place.store
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


def _is_parent_run(place: Place, reference: str) -> bool:
    return bool(RUN_ID.match(reference)) and "resprout.report" in place.tracker.run(reference).data.tags


def _config(given: dict[str, Any], device: str, top: Node) -> RunConfig:
    """The recorded config without a registration: nothing is registered a second time."""
    code = top.record.code
    commit = f", commit {code['commit']}" if "commit" in code else ""
    wrote = f"resprout {code.get('resprout', 'unknown')}{commit}, on {top.record.started[:10]}"
    data = {**given, "register": None, "model": {**given["model"], "device": device}}
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


def _found(store: ArtifactStore, node: Node | None) -> ArtifactRef | None:
    return None if node is None else _ref(store, node)


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
