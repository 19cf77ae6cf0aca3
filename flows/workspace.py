"""Open the artifact store and MLflow for a command, and find what a reference names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.load import load_infra
from resprout.infra.environment import prepare
from resprout.infra.lineage import record_of_digest
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import FLOW_RUN, REPORT_RECORD
from resprout.infra.provenance.timestamp import Authority
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from resprout.infra.mlflow.tracking import Tracker

DIGEST = re.compile(r"^[0-9a-f]{64}$")
RUN_ID = re.compile(r"^[0-9a-f]{32}$")
FLOW_RUN_ID = re.compile(r"^[0-9a-f]{6,8}(-[0-9a-f-]{0,27})?$")


@dataclass(frozen=True)
class Workspace:
    """An open store and a connected tracker."""

    store: ArtifactStore
    tracker: Tracker
    home: Path
    authority: Authority | None = None


@dataclass(frozen=True)
class Found:
    """Target of a reference: its record, and tags, source and run of the model version where it is one."""

    record: str
    digest: str
    version: str | None = None
    name: str | None = None
    number: str | None = None
    tags: dict[str, str] | None = None
    source: str | None = None
    run: str | None = None


def open_workspace(config: Path | None, reference: str, read_only: bool = False) -> Workspace:
    """Store and tracker of a run config, or of the environment where none is given.

    With `read_only` the store stays as it is, also where it turns out to be damaged.

    Raises:
        BadInput: nothing has run there yet, so nothing can have the `reference`; no folder is made.
    """
    infra, home = load_infra(config)
    digest_elsewhere = DIGEST.match(reference) and infra.store.uri is not None
    if not home.is_dir() and infra.mlflow.tracking_uri is None and not digest_elsewhere:
        raise BadInput(
            f"{reference} is not known here, because there is no data folder {home} and no "
            "infra.mlflow.tracking_uri; give the run's config with --config, or set RESPROUT_HOME"
        )
    authority = Authority.from_config(infra.proof)
    prepare(infra, home, read_only=read_only)
    # MLflow reads its environment when it is imported, so the tracker comes after `prepare`.
    from resprout.infra.mlflow.tracking import Tracker

    tracker = Tracker(infra.mlflow, home)
    tracker.connect(read_only)
    store = ArtifactStore.from_config(infra.store, home, infra.proof)
    store.read_only = read_only
    return Workspace(store, tracker, home, authority)


def named(workspace: Workspace, reference: str) -> str:
    """The reference behind a short one: for a registered model's name that of its newest version.

    For a flow run's id, or its beginning, as `resprout runs` has it, it is the MLflow run. Others stay.

    Raises:
        BadInput: several runs begin so, or the registered model has no version.
    """
    if not FLOW_RUN_ID.match(reference):
        return _newest_version(workspace, reference)
    wanted = f"tags.`{FLOW_RUN}` LIKE '{reference}%'"
    found = [run.info.run_id for run in search.runs(workspace.tracker, wanted)]
    if len(found) > 1:
        raise BadInput(f"{len(found)} runs have an id that begins with {reference}; give more of it")
    return found[0] if found else reference


def _newest_version(workspace: Workspace, reference: str) -> str:
    """models:/name/3 behind models:/name or a registered model's bare name; else the reference."""
    name = reference.removeprefix("models:/")
    if "/" in name or "@" in name or DIGEST.match(name) or RUN_ID.match(name):
        return reference
    if not search.is_registered(workspace.tracker, name):
        return reference
    numbers = [int(one.version) for one in workspace.tracker.versions(search.named(name))]
    if not numbers:
        raise BadInput(f"the registered model {name} has no version; give another, or run a config")
    return f"models:/{name}/{max(numbers)}"


def parts(reference: str) -> tuple[str, str, str]:
    """Name, alias and number of models:/name/3 or models:/name@alias; empty where it is none."""
    rest = reference.removeprefix("models:/")
    if rest == reference:
        return "", "", ""
    name, _, number = rest.rpartition("/")
    if name and number.isdigit():
        return name, "", number
    name, _, alias = rest.rpartition("@")
    return name, alias, ""


def find(workspace: Workspace, reference: str) -> Found:
    """The record behind models:/name/3, models:/name@alias, an artifact digest, a record id, or a run id."""
    if reference.startswith("models:/"):
        version = workspace.tracker.version(reference)
        tags = dict(version.tags)
        if "resprout.record" not in tags or "resprout.digest" not in tags:
            raise VerificationFailed(
                f"{reference} (version {version.version}) has no resprout.record or resprout.digest tag: it "
                "was not registered by resprout, or its tags were removed"
            )
        shown = f"{version.name} version {version.version}"
        return Found(
            record=tags["resprout.record"],
            digest=tags["resprout.digest"],
            version=shown,
            name=version.name,
            number=str(version.version),
            tags=tags,
            source=version.source,
            run=version.run_id,
        )
    if DIGEST.match(reference):
        if workspace.store.has_record(reference):
            return Found(reference, workspace.store.get_record(reference).content)
        return Found(record_of_digest(workspace.store, reference), reference)
    if RUN_ID.match(reference):
        tags = workspace.tracker.run(reference).data.tags
        if "resprout.record" in tags:
            return Found(tags["resprout.record"], tags["resprout.digest"], tags=dict(tags))
        raise BadInput(
            f"run {reference} has no artifact of its own; give a stage's run, or models:/name@alias, or a "
            "digest"
        )
    raise BadInput(
        f"'{reference}' is no reference; give models:/name/3, models:/name@alias, an artifact digest (64 "
        "hexadecimal digits), or the id of a stage's MLflow run"
    )


STAGE = "report"
EXPORT = "export"
"""The role that the export plays for its report."""


def report_of(store: ArtifactStore, tags: Mapping[str, str], made: Record | None) -> str | None:
    """Record of the report that tags name, else of the newest on what was made; None where there is none.

    `made` is the record of an export, of which another run may have made the same, or of another artifact,
    which has no report; without it the tags are those of a whole run.
    """
    if identity := tags.get(REPORT_RECORD):
        return identity
    export = made.content if made is not None else None
    if digest := tags.get("resprout.report"):
        return _newest(store, store.records_of(digest), export)
    if made is None or made.stage != EXPORT:
        return None
    children = {child for record in store.records_of(made.content) for child in store.children(record)}
    return _newest(store, children, export)


def _newest(store: ArtifactStore, candidates: Iterable[str], export: str | None) -> str | None:
    reports = [
        (record.started, identity)
        for identity, record in ((one, store.get_record(one)) for one in candidates)
        if record.stage == STAGE
        and (export is None or any(one.role == EXPORT and one.digest == export for one in record.parents))
    ]
    return max(reports)[1] if reports else None
