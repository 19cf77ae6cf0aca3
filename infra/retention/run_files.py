"""The files that MLflow keeps beside its tables, for runs, logged models and traces, wherever they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from resprout.infra.answers import answers
from resprout.infra.retention.bundle import FILES, MODELS, TRACES
from resprout.infra.tracking import Tracker

TRACE_PLACE = "mlflow.artifactLocation"
"""Tag of a trace that says where its files are."""
READY = 2
"""Status of a logged model whose files are complete."""


@dataclass(frozen=True)
class Kept:
    """A folder of files: its key in a backup, where MLflow has it, and a text that says how it ended.

    Where that text is None, files may still be written.
    """

    key: str
    uri: str
    ended: str | None


def kept(tables: Path) -> Iterator[Kept]:
    """All that the rows of a dump name, whether or not there are files."""
    for row in lines(tables, "runs"):
        ended = row["end_time"]
        yield Kept(f"{FILES}{row['run_uuid']}", row["artifact_uri"], None if ended is None else str(ended))
    for row in lines(tables, "logged_models"):
        ended = str(row["last_updated_timestamp_ms"]) if row["status"] == READY else None
        yield Kept(f"{MODELS}{row['model_id']}", row["artifact_location"], ended)
    for row in lines(tables, "trace_tags"):
        if row["key"] == TRACE_PLACE:
            # MLflow writes the file of a trace once, when the trace is over.
            yield Kept(f"{TRACES}{row['request_id']}", row["value"], "")


def through_server(uri: str) -> bool:
    """Whether the tracking server says where the files are."""
    return urlsplit(uri).scheme == "mlflow-artifacts"


@answers
def sizes(tracker: Tracker, artifact_uri: str) -> dict[str, int]:
    """Path and size of each file there."""
    repository = _repository(tracker, artifact_uri)
    found: dict[str, int] = {}
    todo: list[str | None] = [None]
    while todo:
        for one in repository.list_artifacts(todo.pop()):
            if one.is_dir:
                todo.append(one.path)
            else:
                found[one.path] = int(one.file_size or 0)
    return found


@answers
def bring(tracker: Tracker, artifact_uri: str, target: Path) -> bool:
    """Copy all files there into the new folder `target`; False where there are none."""
    repository = _repository(tracker, artifact_uri)
    if not repository.list_artifacts():
        return False
    target.mkdir(parents=True)
    repository.download_artifacts("", str(target))
    return True


@answers
def put(tracker: Tracker, artifact_uri: str, folder: Path) -> None:
    """Copy a folder's files there."""
    _repository(tracker, artifact_uri).log_artifacts(str(folder))


@answers
def remove(tracker: Tracker, artifact_uri: str, path: str) -> None:
    """Delete a file of a run."""
    _repository(tracker, artifact_uri).delete_artifacts(path)


def _repository(tracker: Tracker, artifact_uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(tracker.files.here(artifact_uri), tracking_uri=tracker.uri)


def lines(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """Rows of a dump; none where MLflow's schema has no such table."""
    path = folder / f"{table}.jsonl"
    if path.exists():
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield json.loads(line)
