"""Register the exported model: on every run a version with this digest, in this place, and its alias exist.

Not a cached stage: the registry is a place that others write too, so its content is read each time.
The newest version of these bytes is taken where its source is here, or by the ledger was before a move; else
one is made.

Where a version points: an S3 store's own `s3://` uri; with a local store and a direct database its `file://`
folder; with a local store and an MLflow server, which refuses `file:` sources, a copy in the folder of the
version's LoggedModel (earlier versions: among the artifacts of the run). The MLmodel by which MLflow loads it
is part of the export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput
from resprout.configs.result import RegisteredResult
from resprout.configs.schema import RegisterConfig
from resprout.infra.mlflow.logged_model import (
    ModelPage,
    begin_model,
    folder_of,
    keep_in_model,
    link_version,
    point_outside,
)
from resprout.infra.provenance.ledger import Registrar
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.run import Run

if TYPE_CHECKING:
    from resprout.infra.mlflow.logged_model import LoggedModel
    from resprout.infra.mlflow.tracking import Tracker

COPY = "model"
"""Folder of a run's artifacts that holds a copy of the export of an earlier version."""


def register(
    run: Run,
    config: RegisterConfig,
    export: ArtifactRef,
    folder: str,
    tags: Mapping[str, str],
    description: str,
    registrar: Registrar,
    of_the_model: str = "",
    page: ModelPage | None = None,
) -> RegisteredResult:
    """The version that holds `folder` of `export`; `tags` say how it came to be.

    One that is there is taken where the ledger knows it (`registrar`): its tags alone could be anybody's.
    A version that is made gets the `description` and a LoggedModel with this `page`, a model that is
    registered now gets `of_the_model`.
    """
    tracker = run.tracker
    held = (
        one
        for one in tracker.holding(config.name, export.digest)
        if is_here(run, registrar, export.digest, folder, one.source or "", one.run_id)
        and registrar.takes(one)
    )
    version = next(held, None)
    if version is None:
        own = {"resprout.digest": export.digest, "resprout.record": export.record, **tags, **config.tags}
        page = page or ModelPage()
        model = begin_model(tracker, run.mlflow_run_id, config.name, own, page)
        source = _source(run, export.digest, folder, model, page)
        registrar.announce(source, own, description)
        version = tracker.make_version(
            config.name, source, run.mlflow_run_id, own, description, of_the_model, model.model_id
        )
        link_version(tracker, model.model_id, config.name, str(version.version), page.mlmodel)
    changed = {key: value for key, value in config.tags.items() if version.tags.get(key) != value}
    registrar.announce_change(str(version.version), changed, config.alias)
    if changed:
        tracker.tag_version(config.name, str(version.version), changed)
    if config.alias:
        tracker.point_alias(config.name, config.alias, str(version.version))
    return RegisteredResult(name=config.name, version=str(version.version), alias=config.alias)


def own_uri(store: ArtifactStore, digest: str, folder: str) -> str:
    """Address of a folder of an artifact where the store is now."""
    return f"{store.uri(digest).rstrip('/')}/{folder}"


def is_copy(store: ArtifactStore, tracker: Tracker) -> bool:
    """Whether versions point at a copy of the export that MLflow keeps, not into the store itself."""
    return tracker.is_server and not store.driver.remote


def copies(tracker: Tracker, owner: str | None) -> list[str]:
    """Addresses at which MLflow may keep the copy of a version: of its run's LoggedModel, and of its run."""
    try:
        own = tracker.artifact_uri(owner or "", COPY)
    except BadInput:
        return []
    found = folder_of(tracker, owner or "")
    return [own] if found is None else [found, own]


def is_here(run: Run, registrar: Registrar, digest: str, folder: str, source: str, owner: str | None) -> bool:
    """Whether a version's source is where this store and this server keep `folder`, or did before a move.

    A copy is known by `owner`, the run behind it; its bytes are `verify`'s to hash.
    """
    if is_copy(run.store, run.tracker):
        return source in copies(run.tracker, owner)
    return registrar.is_at(source, own_uri(run.store, digest, folder))


def _source(run: Run, digest: str, folder: str, model: LoggedModel, page: ModelPage) -> str:
    if is_copy(run.store, run.tracker):
        with run.store.open(digest) as local:
            return keep_in_model(run.tracker, model, local / folder)
    source = own_uri(run.store, digest, folder)
    point_outside(run.tracker, model, source, page.mlmodel)
    return source
