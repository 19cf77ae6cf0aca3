"""The files of MLflow runs, wherever MLflow keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resprout.infra.answers import answers
from resprout.infra.tracking import Tracker


@answers
def bring(tracker: Tracker, artifact_uri: str, target: Path) -> bool:
    """Copy all files of a run into the new folder `target`; False where it has none."""
    repository = _repository(tracker, artifact_uri)
    if not repository.list_artifacts():
        return False
    target.mkdir(parents=True)
    repository.download_artifacts("", str(target))
    return True


@answers
def put(tracker: Tracker, artifact_uri: str, folder: Path) -> None:
    """Copy a folder's files to where the run keeps its own."""
    _repository(tracker, artifact_uri).log_artifacts(str(folder))


@answers
def remove(tracker: Tracker, artifact_uri: str, path: str) -> None:
    """Delete a file of a run."""
    _repository(tracker, artifact_uri).delete_artifacts(path)


def _repository(tracker: Tracker, artifact_uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=tracker.uri)
