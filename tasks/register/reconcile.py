"""Register the exported model: on every run a version with this digest and its alias exist, or are made.

Not a cached stage: the registry is a place that others write too, so what it holds is looked at each time.

Where a version points: an S3 store's own `s3://` uri; with a local store and a direct database its `file://`
folder; with a local store and an MLflow server, which refuses `file:` sources, the export becomes an artifact
of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resprout.configs.result import RegisteredResult
from resprout.configs.schema import RegisterConfig
from resprout.infra.store.reference import ArtifactRef
from resprout.tasks.run import Run


def register(
    run: Run,
    config: RegisterConfig,
    export: ArtifactRef,
    folder: str,
    tags: Mapping[str, str],
    description: str,
) -> RegisteredResult:
    """The version that holds `folder` of `export`; `tags` say how it came to be."""
    tracker = run.tracker
    version = tracker.find_version(config.name, export.digest)
    if version is None:
        own = {"resprout.digest": export.digest, "resprout.record": export.record, **tags, **config.tags}
        version = tracker.make_version(
            config.name, _source(run, export, folder), run.mlflow_run_id, own, description
        )
    if config.alias:
        tracker.point_alias(config.name, config.alias, str(version.version))
    return RegisteredResult(name=config.name, version=str(version.version), alias=config.alias)


def _source(run: Run, export: ArtifactRef, folder: str) -> str:
    uri = f"{export.uri.rstrip('/')}/{folder}"
    if export.uri.startswith("s3://"):
        return uri
    if not run.tracker.is_server:
        return Path(uri.removeprefix("file://")).as_uri()
    with run.store.open(export.digest) as local:
        run.tracker.log_folder(run.mlflow_run_id, local / folder, "model")
    return run.tracker.artifact_uri(run.mlflow_run_id, "model")
