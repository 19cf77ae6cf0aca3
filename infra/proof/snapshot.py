"""All that MLflow says about a run or a model version, in one plain form, so that two looks can be compared.

Nothing is picked: whatever the entities hold enters as they serialise themselves, so a column that a later
MLflow adds is covered as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from resprout.infra.mlflow.errors import legible, mlflow_errors
from resprout.infra.mlflow.tracking import ANNOUNCED, Tracker
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import plain_status
from resprout.infra.store.manifest import hash_file

if TYPE_CHECKING:
    from mlflow.entities import Run

THREADS = 8
PAGE = 1000
State = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where store and run files are; a home that moves or a backup that comes back changes no fact."""

    store: str
    artifacts: str

    def as_dict(self) -> dict[str, str]:
        return {"store": self.store, "artifacts": self.artifacts}


def places(tracker: Tracker, store_uri: str) -> Places:
    """Where store and run files are now."""
    return Places(store_uri, tracker.artifact_root())


@legible
@mlflow_errors
def run_states(tracker: Tracker, run_id: str, own_copy: str | None = None) -> dict[str, State]:
    """By run id what MLflow says about a run and the runs nested in it.

    Files below `own_copy`, the copy of an export, are left out: the export's manifest has their hashes. So
    are tags that announce what a run is about to do, which go once it is done.
    """
    client = tracker.client
    runs, token = [tracker.run(run_id)], None
    experiment = runs[0].info.experiment_id
    while True:
        page = client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=PAGE, page_token=token
        )
        runs += page
        token = page.token
        if not token:
            break
    with ThreadPoolExecutor(THREADS) as pool, tempfile.TemporaryDirectory() as scratch:
        return {run.info.run_id: _state(tracker, run, pool, Path(scratch), own_copy) for run in runs}


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
def version_state(tracker: Tracker, name: str, version: str) -> State:
    """What the registry says about a model version, without the aliases, which are the model's."""
    found = MessageToDict(tracker.client.get_model_version(name, version).to_proto())
    found.pop("aliases", None)
    # What MLflow loads is at this address, which need not be the source that it shows.
    found["download"] = tracker.client.get_model_version_download_uri(name, version)
    return {**_said(found), "tags": {one["key"]: one.get("value", "") for one in found.get("tags", ())}}


@legible
@mlflow_errors
def model_state(tracker: Tracker, name: str) -> tuple[State, dict[str, str]]:
    """What the registry says about a registered model itself, and its aliases."""
    model = tracker.client.get_registered_model(name)
    found = MessageToDict(model.to_proto())
    # Versions and aliases stand for themselves, and with each the time moves.
    for key in ("latestVersions", "aliases", "lastUpdatedTimestamp"):
        found.pop(key, None)
    state = {**_said(found), "tags": {one["key"]: one.get("value", "") for one in found.get("tags", ())}}
    return state, {alias: str(version) for alias, version in model.aliases.items()}


def _said(found: State) -> State:
    """Without empty fields, which a server answers and a database does not."""
    return {key: value for key, value in found.items() if value != ""}


def placed(state: Any, *known: Places) -> Any:
    """The state with {store} and {artifacts} instead of the addresses of any of the known places."""
    if isinstance(state, dict):
        return {key: placed(value, *known) for key, value in state.items()}
    if isinstance(state, list):
        return [placed(value, *known) for value in state]
    if isinstance(state, str):
        # What looks like a placeholder is none, and an address counts at the start of a text only.
        state = f"\\{state}" if state.startswith(("{", "\\")) else state
        for one in known:
            for name, root in one.as_dict().items():
                if state.startswith(f"{root}/"):
                    return f"{{{name}}}/{state.removeprefix(f'{root}/')}"
    return state


def differences(sealed: Mapping[str, Any], now: Mapping[str, Any], what: str = "") -> Iterator[str]:
    """A sentence for each fact that was changed, removed or added."""
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
