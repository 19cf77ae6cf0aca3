"""Without any key: what `verify` finds of files, links, records and entries that somebody put into a home."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import DEEP, Forger, brought_back, kept
from resprout.configs.errors import ResproutError, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit.verification import examine, examine_all
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.ledger import PREDICATE
from resprout.infra.provenance.statement import statement
from resprout.infra.store.manifest import Manifest
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.signing import UNSIGNED
from resprout.infra.store.store import ArtifactStore
from tiny_run import write_run

VERSION = "models:/tiny-pruned/1"
ID = "ab" * 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("unsigned")
    config = write_run(folder, select=None, recover=None, measure=None)
    done = resprout("run", config, "--json", home=folder / "home")
    assert done.code == 0, done.err
    kept(folder / "home", folder / "aside")
    return folder


@pytest.fixture
def home(root: Path) -> Iterator[Path]:
    yield root / "home"
    brought_back(root / "home", root / "aside")


def opened(home: Path) -> Workspace:
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    return Workspace(ArtifactStore.from_config(StoreConfig(), home), tracker, home)


def looked(home: Path, everything: bool = False) -> list[str]:
    """What `verify` finds; an error that is no sentence of resprout's own is found as such."""
    try:
        place = opened(home)
        return (examine_all(place) if everything else examine(place, VERSION)).problems
    except ResproutError as error:
        return [str(error)]
    except Exception as error:
        return [f"RAW {type(error).__name__}: {error}"]


def is_found(problems: list[str], word: str) -> bool:
    return any(word in one for one in problems) and not any(one.startswith("RAW") for one in problems)


def test_nothing_is_found_where_nothing_was_changed(home: Path) -> None:
    assert looked(home) == looked(home, everything=True) == []


def export_folder(home: Path) -> Path:
    return home / "store" / "content" / Forger(home).record("export")[1].content


@pytest.mark.parametrize("what", ["file", "folder", "artifact", "room"])
def test_content_replaced_by_a_link_to_equal_bytes_elsewhere(home: Path, tmp_path: Path, what: str) -> None:
    artifact = export_folder(home)
    path = {
        "file": artifact / "hf" / "model.safetensors",
        "folder": artifact / "hf",
        "artifact": artifact,
        "room": artifact.parent,
    }[what]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert is_found(looked(home), path.name)
    with pytest.raises(VerificationFailed), opened(home).store.open(artifact.name):
        pass


@pytest.mark.parametrize("change", [{"who": "somebody"}, {"config": {"formats": ["gguf"]}}, {"seconds": 0.1}])
def test_one_record_more_with_its_index_entries(home: Path, change: dict[str, Any]) -> None:
    forger = Forger(home)
    _, export = forger.record("export")
    forged = forger.store.put_record(export.model_copy(update=change))
    assert is_found(looked(home), forged)
    assert is_found(looked(home, everything=True), forged)


def test_a_pointer_to_a_forged_record_is_found_and_one_of_another_config_is_not_taken(
    home: Path, tmp_path: Path
) -> None:
    forger = Forger(home)
    _, export = forger.record("export")
    forged = forger.point("export", forger.tampered(export, tmp_path / "tampered"))
    assert is_found(looked(home), forged)
    forger.point("export", export.model_copy(update={"config": {**export.config, "greedy_tokens": 99}}))
    assert ArtifactResults.of(forger.store).find(export.key) is None
    forger.point("export", export)
    assert ArtifactResults.of(forger.store).find(export.key) is not None


@pytest.mark.parametrize("at", ["content", "records", "registry", "seals", "results"])
def test_a_pipe_where_a_file_belongs_holds_nobody_up(
    home: Path, resprout: Callable[..., Any], at: str
) -> None:
    path = next(one for one in sorted((home / "store" / at).rglob("*")) if one.is_file())
    if at == "content":
        path = export_folder(home) / "hf" / "config.json"
    path.unlink()
    os.mkfifo(path)
    try:
        done = resprout("verify", VERSION, home=home, timeout=60)
    except subprocess.TimeoutExpired:
        done = None
    assert done is not None, "verify waits for somebody at the other end of the pipe"
    assert done.code == 4, done.err
    assert path.name in done.err


@pytest.mark.parametrize("at", ["exports", "manifests", "records", "registry", "results", "seals", "config"])
def test_json_deeper_than_any_stack(home: Path, at: str) -> None:
    found = (home / "store").glob(f"{at}/**/*")
    if at == "config":
        found = export_folder(home).glob("hf/config.json")
    path = next(one for one in sorted(found) if one.is_file())
    path.chmod(0o644)
    path.write_bytes(DEEP)
    for problems in (looked(home), looked(home, everything=True)):
        assert is_found(problems, path.stem), problems


@pytest.mark.parametrize("at", ["record", "records", "registry", "seals", "manifests"])
def test_links_that_lead_to_themselves(home: Path, at: str) -> None:
    path = home / "store" / at
    if at == "record":
        path = home / "store" / "records" / f"{Forger(home).record('export')[0]}.json"
    shutil.move(path, home / "aside")
    path.symlink_to(path.name)
    assert is_found(looked(home), "link"), looked(home)
    assert is_found(looked(home, everything=True), "link"), looked(home, everything=True)


WRONG: list[tuple[str, Any]] = [
    ("places", "here"), ("places", {"store": 1, "artifacts": 2}), ("versions", [1]), ("versions", {"1": 7}),
    ("versions", {"1": {"tags": 3}}), ("aliases", "candidate"), ("aliases", {"candidate": [1]}),
    ("run", ["x"]), ("sequence", "0"), ("name", 5), ("intent", "x"), ("seal", {"a": 1}), ("model", 3),
]  # fmt: skip


def rewritten(path: Path, kind: str, field: str, value: Any) -> None:
    """A statement with another value in one field, written as resprout writes it."""
    said = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    changed = {**said["predicate"], field: value}
    path.write_bytes(UNSIGNED.envelope(statement(said["subject"][0]["name"], kind, changed)))


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_ledger_entry_with_a_field_of_another_type(home: Path, field: str, value: Any) -> None:
    path = sorted((home / "store" / "registry").rglob("*.json"))[-1]
    rewritten(path, PREDICATE, field, value)
    assert is_found(looked(home), path.name), looked(home)
    assert is_found(looked(home, everything=True), path.name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("records", [1]), ("runs", 3), ("runs", {"x": {"tags": 1}}), ("places", []), ("sealed", "never"),
     ("provenance", 5), ("report", 7), ("registered", {})],
)  # fmt: skip
def test_a_seal_with_a_field_of_another_type(home: Path, field: str, value: Any) -> None:
    (path,) = (home / "store" / "seals").iterdir()
    rewritten(path, "urn:resprout:seal:v1", field, value)
    assert is_found(looked(home), path.stem), looked(home)


def test_notes_on_hashed_files_are_not_taken_from_anybody(home: Path) -> None:
    digest = Forger(home).record("prune")[1].content
    store = ArtifactStore.from_config(StoreConfig(), home)
    with store.open(digest) as folder:
        path = max((one for one in folder.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    manifest = Manifest.loads((home / "store" / "manifests" / f"{digest}.json").read_bytes(), digest)
    stats = {entry.path: (folder / entry.path).stat() for entry in manifest.files}
    stamps = {
        name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino] for name, one in stats.items()
    }
    (note,) = (home / "verified").rglob(f"{digest}.json")
    known = json.loads(note.read_bytes())
    note.write_text(json.dumps({**known, "files": stamps} if "files" in known else stamps, sort_keys=True))
    with pytest.raises(VerificationFailed), ArtifactStore.from_config(StoreConfig(), home).open(digest):
        pass


@pytest.mark.parametrize(
    "key",
    ["made/{export}/" + ID, "used/{record}/" + ID, "quarantine/{export}.json", f"quarantine/{ID}.json",
     "made/{export}/x", "used/x", f"signatures/{ID}/{ID}", f"made/{ID}/{ID}", f"used/{ID}/" + "{record}"],
)  # fmt: skip
def test_entries_that_lead_nowhere(home: Path, key: str) -> None:
    forger = Forger(home)
    identity, export = forger.record("export")
    name = key.format(export=export.content, record=identity)
    data = forger.store.driver.get_bytes(f"manifests/{export.content}.json") or b""
    forger.store.driver.put_bytes(name, data if name.startswith("quarantine") else b"")
    assert is_found(looked(home, everything=True), name), looked(home, everything=True)


def test_an_edited_report_page(home: Path) -> None:
    page = home / "reports" / "tiny" / "report.html"
    page.write_text(page.read_text().replace("tiny", "tidy"))
    assert is_found(looked(home), str(page.parent))
    page.unlink()
    assert looked(home) == [], "who wants no page may delete it"


def unwritable(home: Path, command: list[str]) -> list[str]:
    """The command, where nothing below `home` can be written."""
    if os.getuid() != 0:
        for path in (home, *home.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        return command
    # No permission stops root, so the folder is mounted again in a place of its own.
    mounted = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mounted, "sh", *command]


def test_a_home_that_can_only_be_read_is_verified(home: Path) -> None:
    if os.getuid() == 0 and subprocess.run(unwritable(home, ["true"]), capture_output=True).returncode != 0:
        pytest.skip("root cannot mount a folder read-only here")
    env = {**os.environ, "RESPROUT_HOME": str(home)}
    for words in (["verify", VERSION], ["verify", "--all"], ["audit", "--strict"], ["lineage", VERSION]):
        command = unwritable(home, [sys.executable, "-m", "resprout.flows.cli.main", *words])
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
    for path in (home, *home.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
