"""Names from outside that become paths: each place refuses those that lead elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.schema import RegisterConfig, RunConfig
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.manifest import FileEntry, Manifest
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire import source
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted
from resprout.tasks.acquire.sources.hf import Hub
from resprout.tasks.acquire.sources.package import Package
from tiny_run import config as tiny_config

UP = ["../x", "a/../../x", "..", "/etc/passwd", "a//b", "./a", "a\\..\\x", "C:x", "a\x00b", ""]
"""Paths that leave their folder, are absolute, or mean something else on another system."""
NOT_NAMES = ["../x", "a/b", "..", "/etc", ".hidden", "", "a b", "a\nb", "x" * 200, "a\x00"]


def run_name(name: str, folder: Path) -> None:
    RunConfig.model_validate(tiny_config(name=name))


def model_name(name: str, folder: Path) -> None:
    RegisterConfig(name=name)


def corpus_name(name: str, folder: Path) -> None:
    given = tiny_config()
    given["evaluate"]["perplexity"]["name"] = name
    RunConfig.model_validate(given)


def store_key(name: str, folder: Path) -> None:
    LocalDriver(folder).put_bytes(name, b"x")


def manifest_entry(name: str, folder: Path) -> None:
    FileEntry(path=name, size=1, sha256="0" * 64, chunks=("0" * 64,))


def manifest_bytes(name: str, folder: Path) -> None:
    entry = {"path": name, "size": 1, "sha256": "0" * 64, "chunks": ["0" * 64]}
    data = {"schema_version": 1, "digest": "0" * 64, "files": [entry]}
    Manifest.loads(json.dumps(data).encode(), "0" * 64)


def result_key(name: str, folder: Path) -> None:
    ArtifactResults.of(ArtifactStore(LocalDriver(folder), folder, 1000)).write_path(name, b"{}")


def artifact_digest(name: str, folder: Path) -> None:
    ArtifactStore(LocalDriver(folder), folder, 1000).manifest(name)


def record_id(name: str, folder: Path) -> None:
    ArtifactStore(LocalDriver(folder), folder, 1000).get_record(name)


def package_path(name: str, folder: Path) -> None:
    Package().locate(f"package://resprout/{name}", Context(folder, folder))


def package_module(name: str, folder: Path) -> None:
    Package().locate(f"package://{name}/x", Context(folder, folder))


def model_version(name: str, folder: Path) -> None:
    context = Context(folder, folder, tracking_uri=f"sqlite:///{folder}/none.db")
    source.pin(f"models:/{name}@x/../..", Wanted("model"), context)


PLACES: list[tuple[Callable[[str, Path], None], list[str]]] = [
    (run_name, NOT_NAMES),
    (model_name, NOT_NAMES),
    (corpus_name, NOT_NAMES),
    (store_key, UP),
    (manifest_entry, UP),
    (manifest_bytes, UP),
    (result_key, UP),
    (artifact_digest, [*UP, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"]),
    (record_id, [*UP, "0" * 64 + "/.."]),
    (package_path, UP),
    (package_module, ["..", ".", "a-b", "a.b", "", "os;x"]),
    (model_version, ["x", "../x"]),
]


@pytest.mark.parametrize(
    ("place", "name"),
    [pytest.param(place, name, id=f"{place.__name__}-{name!r}") for place, names in PLACES for name in names],
)
def test_a_name_that_leads_elsewhere_is_refused(
    place: Callable[[str, Path], None], name: str, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises((BadInput, VerificationFailed, ValidationError)):
        place(name, inside)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not [path for path in inside.rglob("*") if path.is_file() and path.name != "objects.lock"]


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a/../../evil.json"])
@pytest.mark.parametrize("purpose", ["model", "data"])
def test_a_hub_that_lists_paths_that_lead_elsewhere_is_refused(
    name: str, purpose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        SimpleNamespace(rfilename=one, size=1, lfs=None) for one in ("config.json", "model.safetensors", name)
    ]
    info = SimpleNamespace(siblings=files, sha="0" * 40, card_data=None)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *given, **more: info)
    with pytest.raises(BadInput, match="no safe path"):
        source.pin("hf://org/name", Wanted(purpose), Context(tmp_path, tmp_path))


@pytest.mark.parametrize("name", UP)
def test_no_source_gets_a_file_past_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pin(self: Any, given: str, wanted: Wanted, context: Context) -> Pinned:
        return Pinned(given, "hf", "x", (PinnedFile(name, 1, name, "i"),), {}, "0" * 64)

    monkeypatch.setattr(Hub, "pin", pin)
    with pytest.raises(BadInput, match="no safe path"):
        source.pin("hf://org/name", Wanted("data"), Context(tmp_path, tmp_path))
