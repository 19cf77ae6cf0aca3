"""The state of runs, versions and models in MLflow in one plain form that can be sealed and compared.

Nothing is picked: whatever the entities hold enters as they serialise themselves, so a column that a later
MLflow adds is covered as well.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.mlflow.errors import legible, mlflow_errors
from resprout.infra.mlflow.logged_model import OUTSIDE
from resprout.infra.mlflow.tracking import ANNOUNCED, PARENT, RECORD, Tracker
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import plain_status
from resprout.infra.store.manifest import hash_file
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

THREADS = 8
PAGE = 1000
State = dict[str, Any]
METRICS = "metrics.json"
FINISHED = "FINISHED"
SHOWN_ABOVE = ("scores", "measurement")
"""Kinds of artifacts whose metrics the whole run shows as well."""


@dataclass(frozen=True)
class Locations:
    """Addresses of store and run files, which move with a home or a restored backup."""

    store: str
    artifacts: str

    def as_dict(self) -> dict[str, str]:
        return {"store": self.store, "artifacts": self.artifacts}


def locations(tracker: Tracker, store_uri: str) -> Locations:
    """Return the addresses of store and run files now."""
    return Locations(store_uri, tracker.artifact_root())


@legible
@mlflow_errors
def run_states(tracker: Tracker, run_id: str, own_copy: str | None = None) -> dict[str, State]:
    """Return the states of a run and of the runs nested in it, by run id.

    Files below `own_copy`, the copy of an export, are left out: the export's manifest has their hashes. So
    are tags that announce what a run is about to do, which go once it is done.
    """
    client = tracker.client
    runs, token = [tracker.run(run_id)], None
    experiment = runs[0].info.experiment_id
    while True:
        page = client.search_runs(
            [experiment], f"tags.`{PARENT}` = '{run_id}'", max_results=PAGE, page_token=token
        )
        runs += page
        token = page.token
        if not token:
            break
    with ThreadPoolExecutor(THREADS) as pool, tempfile.TemporaryDirectory() as scratch:
        found = {run.info.run_id: _state(tracker, run, pool, Path(scratch), own_copy) for run in runs}
        found[run_id]["files"] |= dict(_model_files(tracker, runs[0], Path(scratch)))
        return found


def _state(
    tracker: Tracker, run: Run, pool: ThreadPoolExecutor, scratch: Path, own_copy: str | None
) -> State:
    run_id = run.info.run_id
    found = MessageToDict(run.to_proto())
    data = found.pop("data", {})
    given = found.get("inputs", {}).pop("datasetInputs", ())
    histories = pool.map(lambda key: _history(tracker, run_id, key), sorted(run.data.metrics))
    folder = tracker.files.folder(run.info.artifact_uri)
    found_paths = _below(folder) if folder is not None else file_paths(tracker, run_id)
    paths = [path for path in found_paths if path.partition("/")[0] != own_copy]

    def hashed(path: str) -> dict[str, Any]:
        if folder is None:
            local = Path(tracker.client.download_artifacts(run_id, path, str(_own(scratch))))
        else:
            plain_status(folder, path)
            local = folder / path
        entry = hash_file(local, path)
        return {"size": entry.size, "sha256": entry.sha256}

    return {
        **found,
        "params": {one["key"]: one.get("value", "") for one in data.get("params", ())},
        "tags": {
            one["key"]: one.get("value", "")
            for one in data.get("tags", ())
            if not one["key"].startswith(ANNOUNCED)
        },
        "datasets": _by_name(given),
        "metrics": {one["key"]: one for one in data.get("metrics", ())},
        "histories": dict(zip(sorted(run.data.metrics), histories, strict=True)),
        "files": dict(zip(paths, pool.map(hashed, paths), strict=True)),
    }


def _model_files(tracker: Tracker, run: Run, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files of the run's LoggedModels; those of a copy of the export are in the export's manifest."""
    from mlflow.artifacts import download_artifacts

    wanted = f"source_run_id = '{run.info.run_id}'"
    for model in tracker.client.search_logged_models([run.info.experiment_id], wanted):
        if OUTSIDE not in model.tags:
            continue
        folder = tracker.files.folder(model.artifact_location)
        if folder is None:
            address, target = model.artifact_location, str(_own(scratch))
            folder = Path(download_artifacts(address, dst_path=target, tracking_uri=tracker.uri))
        for path in _below(folder):
            plain_status(folder, path)
            entry = hash_file(folder / path, path)
            yield f"models/{model.model_id}/{path}", {"size": entry.size, "sha256": entry.sha256}


def _below(folder: Path) -> list[str]:
    """Paths of all files below a folder; none where there is no such folder."""
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir())


def _by_name(given: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Data set inputs by name and digest; one that is there twice has a number behind it."""
    found: dict[str, Any] = {}
    for one in sorted(given, key=canonical_json):
        name = f"{one['dataset']['name']} {one['dataset']['digest']}"
        same = sum(known.partition(" #")[0] == name for known in found)
        found[f"{name} #{same + 1}" if same else name] = one
    return found


def _own(scratch: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=scratch))


def _history(tracker: Tracker, run_id: str, key: str) -> dict[str, Any]:
    """How many values a metric has, and the SHA-256 over all of them."""
    rows = [MessageToDict(one.to_proto()) for one in tracker.client.get_metric_history(run_id, key)]
    for row in rows:
        # A server names the run in each row, a database does not.
        row.pop("runId", None)
    rows.sort(key=canonical_json)
    return {"values": len(rows), "sha256": sha256_hex(canonical_json(rows))}


def file_paths(tracker: Tracker, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Paths of all files of a run."""
    for found in tracker.client.list_artifacts(run_id, folder):
        if found.is_dir:
            yield from file_paths(tracker, run_id, found.path)
        else:
            yield found.path


@legible
@mlflow_errors
def version_state(tracker: Tracker, name: str, version: str, found: ModelVersion | None = None) -> State:
    """Return the state of a model version without the aliases, which are the model's.

    With `found`, what a search of MLflow answered, nothing more is asked, and "download" is left out.
    """
    shown = MessageToDict((found or tracker.client.get_model_version(name, version)).to_proto())
    shown.pop("aliases", None)
    if found is None:
        # What MLflow loads is at this address, which need not be the source that it shows.
        shown["download"] = tracker.client.get_model_version_download_uri(name, version)
    return {**_filled(shown), "tags": {one["key"]: one.get("value", "") for one in shown.get("tags", ())}}


@legible
@mlflow_errors
def model_state(tracker: Tracker, name: str) -> tuple[State, dict[str, str]]:
    """Return the state of a registered model itself, and its aliases."""
    model = tracker.client.get_registered_model(name)
    found = MessageToDict(model.to_proto())
    # Versions and aliases stand for themselves, and with each the time moves.
    for key in ("latestVersions", "aliases", "lastUpdatedTimestamp"):
        found.pop(key, None)
    state = {**_filled(found), "tags": {one["key"]: one.get("value", "") for one in found.get("tags", ())}}
    return state, {alias: str(version) for alias, version in model.aliases.items()}


def _filled(found: State) -> State:
    """Leave out empty fields, which a server answers and a database does not."""
    return {key: value for key, value in found.items() if value != ""}


def mask_locations(state: Any, *known: Locations) -> Any:
    """Return the state with {store} and {artifacts} in place of any of the known addresses."""
    if isinstance(state, dict):
        return {key: mask_locations(value, *known) for key, value in state.items()}
    if isinstance(state, list):
        return [mask_locations(value, *known) for value in state]
    if isinstance(state, str):
        # What looks like a placeholder is none, and an address counts at the start of a text only.
        state = f"\\{state}" if state.startswith(("{", "\\")) else state
        for one in known:
            for name, root in one.as_dict().items():
                if state.startswith(f"{root}/"):
                    return f"{{{name}}}/{state.removeprefix(f'{root}/')}"
    return state


def differences(sealed: Mapping[str, Any], now: Mapping[str, Any], what: str = "") -> Iterator[str]:
    """Yield a sentence for each fact that was changed, removed or added."""
    for key in sorted({*sealed, *now}):
        name = f"{what} {key}".strip()
        if key not in now:
            yield f"{name} was removed"
        elif key not in sealed:
            yield f"{name} was added"
        elif isinstance(sealed[key], dict) and isinstance(now[key], dict):
            yield from differences(sealed[key], now[key], name)
        elif sealed[key] != now[key]:
            yield f"{name} was changed: it was {_short(sealed[key])} and is {_short(now[key])}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value).decode()
    return f"'{text}'" if len(text) <= 80 else f"'{text[:77]}...' ({len(text)} characters)"


def stage_run_problems(store: ArtifactStore, run_id: str, states: Mapping[str, Any]) -> Iterator[str]:
    """Yield tags and metrics of a run and its nested runs that are not those of their records and artifacts.

    A seal states what MLflow showed when a run ended; what someone wrote there while the run was at work
    would be sealed with it, but not borne out by the artifacts.
    """
    for identity, state in states.items():
        tags, name = state["tags"], state["info"].get("runName", "")
        if RECORD not in tags:
            continue
        try:
            record = store.get_record(tags[RECORD])
            held = metrics_of(store, record.content)
        except (BadInput, VerificationFailed):
            # Checking the artifact itself reports it.
            continue
        except (ValueError, TypeError):
            yield f"{METRICS} of artifact {record.content} holds no metrics"
            continue
        what = f"MLflow run {identity} ({name})"
        for tag, recorded in (("digest", record.content), ("key", record.key), ("stage", record.stage)):
            if tags.get(f"resprout.{tag}") != recorded:
                yield f"{what}: tag resprout.{tag} is not that of record {tags[RECORD]}"
        above = _prefix(record, tags, name) if record.kind in SHOWN_ABOVE else None
        # An outage ended this run before all metrics were logged; a later run of the stage has them.
        cut_off = state["info"].get("status", FINISHED) != FINISHED
        for key, value in held.items():
            logged = state["metrics"].get(key)
            missing = cut_off and logged is None
            if not missing and not _same(logged, value):
                yield f"{what}: metric {key} is not that of artifact {record.content}, which says {value}"
            shown = states[run_id]["metrics"].get(f"{above}{key}")
            if above is not None and shown is not None and not _same(shown, value):
                yield f"MLflow run {run_id}: metric {above}{key} is not that of artifact {record.content}"


def _prefix(record: Record, tags: Mapping[str, str], name: str) -> str:
    """Return the prefix of a stage's metrics on the parent run: the model, where they do not name it."""
    # Runs of earlier versions name their role in the run's name only.
    role = tags.get("resprout.role", name.removeprefix(record.stage).strip())
    return f"{role}." if role else ""


def metrics_of(store: ArtifactStore, digest: str) -> dict[str, float]:
    """Return the metrics that an artifact holds; none where it has no such file, or it was erased."""
    if all(entry.path != METRICS for entry in store.manifest(digest).files):
        return {}
    return {key: float(value) for key, value in dict(store.read_json(digest, METRICS)).items()}


def _same(shown: Mapping[str, Any] | None, value: float) -> bool:
    if shown is None:
        return False
    # What is no number is written as a word.
    return shown.get("value", 0.0) == value or not math.isfinite(value)
