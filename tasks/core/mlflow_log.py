"""Log a stage's artifact in its MLflow run: metrics, series, params, small files, findings of a data scan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from resprout.infra.markdown import code, link, plain
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.stored_json import parse_json

if TYPE_CHECKING:
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.store import ArtifactStore
    from resprout.tasks.core.data_scan import Scan

DATA = ("rows", "text", "task-data")
"""Kinds of artifacts that MLflow shows as data sets."""

LOGGED_FILES = (
    "plan.json",
    "summary.json",
    "details.json",
    "exports.json",
    "gate.json",
    "source.json",
    "samples.jsonl",
)
LOGGED_BYTES = 2_000_000
METRICS, HISTORY = "metrics.json", "history.jsonl"


def log_artifact(
    store: ArtifactStore,
    tracker: Tracker,
    run_id: str,
    ref: ArtifactRef,
    params: Mapping[str, Any],
    timing: Mapping[str, float],
    shown: Collection[tuple[str, int]] = (),
) -> None:
    """Write params, metrics, series and small files of an artifact into the MLflow run.

    `shown` are name and step of the points of series that the run has already.
    """
    paths = {entry.path: entry.size for entry in store.manifest(ref.digest).files}

    def lines(path: str) -> list[bytes]:
        return store.read(ref.digest, path).split(b"\n") if path in paths else []

    metrics = store.read_json(ref.digest, METRICS) if METRICS in paths else {}
    rows = [parse_json(line, HISTORY) for line in lines(HISTORY) if line.strip()]
    history = [
        {name: value for name, value in row.items() if (name, int(row["step"])) not in shown} for row in rows
    ]
    tracker.log(run_id, {**metrics, **timing}, params, history=history)
    for name in LOGGED_FILES:
        if paths.get(name, LOGGED_BYTES + 1) <= LOGGED_BYTES:
            tracker.log_text(run_id, store.read(ref.digest, name).decode(), name)


def log_scan(store: ArtifactStore, tracker: Tracker, run_id: str, ref: ArtifactRef, scan: Scan) -> None:
    """Tag the MLflow run of a data set with what a scan found in it; the scan may raise to end the run."""
    with store.open(ref.digest) as folder:
        found = scan(folder)
    tags = {
        "resprout.data_scan": str(len(found)),
        **({"resprout.data_scan.found": "; ".join(found)} if found else {}),
    }
    tracker.log(run_id, tags=tags)


def stage_note(label: str, whole: str, digest: str, cached: bool, maker: str | None) -> str:
    """Description of a stage's run in MLflow: the run it is a part of, and the one that made the artifact."""
    made = "It was made in this run."
    if cached:
        where = f", where {link('another run', maker)} put it" if maker else ""
        made = f"It was found in the cache{where}."
    of = f"Stage {plain(label)} of {link('this compression run', whole)}."
    return f"{of} Its artifact is {code(digest)}. {made}"


def profile(origin: Mapping[str, Any]) -> str:
    """Origin and licences of data, as MLflow's page of a data set shows them."""
    sources = origin.get("sources", ())
    return "; ".join(f"{one['given']}, licence {one.get('licence') or 'unknown'}" for one in sources)


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data under dotted names."""
    if isinstance(data, dict):
        found: dict[str, Any] = {}
        for key, value in data.items():
            found.update(flat(value, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix or "config": data}
