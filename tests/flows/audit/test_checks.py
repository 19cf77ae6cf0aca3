"""Each check on its own: every tag is forged in turn, and the registry is held against the ledger."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.infrastructure import LicencesConfig, MlflowConfig, StoreConfig
from resprout.flows.audit import verification
from resprout.flows.audit.checks import (
    aliases_as_stated,
    run_state,
    version_download,
    version_state_as_stated,
)
from resprout.flows.audit.evidence import Evidence, VersionEvidence
from resprout.flows.audit.verification import Verification
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.ledger import Ledger, Registrar, replay
from resprout.infra.provenance.seal import SealHashes, read_seal, write_seal
from resprout.infra.store.store import ArtifactStore

VERSION = "models:/tiny-pruned/1"
TAGS = [
    "commit", "config_digest", "digest", "method", "plan", "record", "recovery", "report", "report_record",
    "run", "selection", "source", "source_digest", "version",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(finished: Any) -> Workspace:
    tracker = Tracker(MlflowConfig(), finished.home)
    tracker.connect()
    return Workspace(ArtifactStore.from_config(StoreConfig(), finished.home), tracker, finished.home)


@pytest.fixture(scope="module")
def version(place: Workspace) -> VersionEvidence:
    return Verification(place).evidence.version(VERSION)


def retagged(version: VersionEvidence, name: str, value: str | None) -> VersionEvidence:
    tags = {key: one for key, one in version.tags.items() if key != f"resprout.{name}"}
    return dataclasses.replace(version, tags=tags | ({f"resprout.{name}": value} if value else {}))


def examine(place: Workspace, version: VersionEvidence) -> tuple[int, list[str]]:
    one = Verification(place)
    one.version(version)
    result = one.result()
    return result.artifacts, result.problems


def test_a_version_as_registered_has_no_problem(
    place: Workspace, version: VersionEvidence, finished: Any
) -> None:
    artifacts, problems = examine(place, version)
    assert problems == []
    assert sorted(version.tags) == [f"resprout.{name}" for name in TAGS]
    made = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    assert artifacts == len(made), "the seal names what was prepared for a stage's checks as well"


@pytest.mark.parametrize("name", TAGS)
def test_a_forged_tag_is_named(place: Workspace, version: VersionEvidence, finished: Any, name: str) -> None:
    real = [stage["artifact"]["digest"] for stage in finished.result["stages"]]
    other = next(digest for digest in real if digest not in version.tags.values())
    for value in ("0" * 64, other, "nonsense"):
        _, problems = examine(place, retagged(version, name, value))
        assert any(f"resprout.{name}" in problem for problem in problems), (value, problems)


@pytest.mark.parametrize("name", [name for name in TAGS if name not in ("digest", "record")])
def test_a_removed_tag_is_named(place: Workspace, version: VersionEvidence, name: str) -> None:
    _, problems = examine(place, retagged(version, name, None))
    assert any(f"tag resprout.{name} is missing" in problem for problem in problems)


def test_a_version_that_points_elsewhere_is_found(place: Workspace, version: VersionEvidence) -> None:
    _, problems = examine(place, dataclasses.replace(version, source="file:///elsewhere/hf"))
    source, loaded = problems
    assert "the version's source is file:///elsewhere/hf, but its artifact is at" in source
    assert "the version's source is file:///elsewhere/hf, but MLflow loads it from" in loaded


def test_the_command_ends_with_four_and_names_the_tag(
    place: Workspace, version: VersionEvidence, finished: Any, resprout: Callable[..., Any]
) -> None:
    real = version.tags["resprout.source"]
    place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": "hf://other/model"})
    try:
        found = resprout("verify", VERSION, "--json", home=finished.home)
    finally:
        place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": real})
    assert found.code == 4
    assert "tag resprout.source says hf://other/model, but" in found.err
    assert found.result["problems"]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), tmp_path)


@pytest.fixture
def tracker(tmp_path: Path, mlflow_template: Path) -> Tracker:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    tracker = Tracker(MlflowConfig(), tmp_path)
    tracker.connect()
    return tracker


def in_registry(store: ArtifactStore, tracker: Tracker) -> tuple[list[str], dict[str, str]]:
    """What the registry shows of version 1 of m otherwise than its ledger, and what is unfinished."""
    evidence = Evidence(Workspace(store, tracker, store.home), LicencesConfig())
    version = evidence.version("models:/m/1")
    checks = (version_state_as_stated, version_download, aliases_as_stated)
    found = [problem for check in checks for problem in check(evidence, version)]
    return found, evidence.unfinished


def test_a_change_by_hand_never_becomes_what_is_expected(store: ArtifactStore, tracker: Tracker) -> None:
    run_id = tracker.start("run", {})
    version = tracker.make_version("m", "file:///x", run_id, {"team": "a"}, "text")
    tracker.point_alias("m", "candidate", str(version.version))
    tracker.end(run_id)
    sealed = write_seal(store, tracker, run_id)
    Registrar(store, tracker, "m", run_id).enter("1", sealed, {"team": "a"}, "candidate")
    assert in_registry(store, tracker)[0] == []
    tracker.tag_version("m", "1", {"verdict": "passed"})
    tracker.client.set_registered_model_alias("m", "champion", "1")
    later = Registrar(store, tracker, "m", "a later run")
    later.enter("1", SealHashes("x", None), {"team": "a"}, "candidate")
    assert len(list(Ledger(store, "m").entries())) == 1, "nothing new was done, so nothing is said"
    found = in_registry(store, tracker)[0]
    assert found == ["models:/m/1: tags verdict was added", "alias of m champion was added"]
    tracker.tag_version("m", "1", {"team": "b"})
    later.enter("1", SealHashes("x", None), {"team": "b"}, "candidate")
    assert replay(list(Ledger(store, "m").entries())).versions["1"]["tags"] == {"team": "b"}


def test_what_mlflow_loads_is_held_as_well(store: ArtifactStore, tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start("run", {})
    tracker.make_version("m", "file:///x", run_id, {}, "")
    Registrar(store, tracker, "m", run_id).enter("1", SealHashes("x", None), {}, None)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update model_versions set storage_location = 's3://elsewhere/model'")
    changed, elsewhere = in_registry(store, tracker)[0]
    assert changed == "models:/m/1: download was changed: it was 'file:///x' and is 's3://elsewhere/model'"
    assert elsewhere.endswith("source is file:///x, but MLflow loads it from s3://elsewhere/model")


def test_a_row_that_mlflow_cannot_read_is_a_finding(
    store: ArtifactStore, tracker: Tracker, tmp_path: Path
) -> None:
    run_id = tracker.start("run", {})
    tracker.make_version("m", "file:///x", run_id, {}, "")
    Registrar(store, tracker, "m", run_id).enter("1", SealHashes("x", None), {}, None)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("update model_versions set status = 'WELL'")
    problem, *others = in_registry(store, tracker)[0]
    assert problem.startswith("models:/m/1 cannot be read: what MLflow keeps of m 1 cannot be read"), problem
    assert all("cannot be read: what MLflow keeps of m" in other for other in others), others
    assert problem in verification.examine(Workspace(store, tracker, tmp_path), "models:/m/1").problems


def test_a_run_that_died_after_it_registered_is_sealed_by_the_next(
    store: ArtifactStore, tracker: Tracker
) -> None:
    died = tracker.start("died", {})
    Registrar(store, tracker, "m", died).announce("file:///x", {"resprout.digest": "d"}, "")
    version = tracker.make_version("m", "file:///x", died, {"resprout.digest": "d"}, "")
    following = Registrar(store, tracker, "m", "next")
    assert following.takes(version)
    following.enter("1", SealHashes("x", None), {}, None)
    seal = read_seal(store, died)
    assert seal is not None
    assert seal.predicate["sealed_by"] == "next"
    assert tracker.run(died).info.status == "KILLED"
    evidence = Evidence(Workspace(store, tracker, store.home), LicencesConfig())
    assert list(run_state(evidence, evidence.run(died))) == []
    forged = tracker.make_version("m", "file:///x", died, {"resprout.digest": "d", "approved": "yes"}, "")
    assert not following.takes(forged)


def test_what_a_run_did_in_the_registry_is_unfinished_until_it_says_so_and_a_fault_from_then_on(
    store: ArtifactStore, tracker: Tracker
) -> None:
    first, second = tracker.start("first", {}), tracker.start("second", {})
    Registrar(store, tracker, "m", first).announce("file:///x", {}, "")
    tracker.make_version("m", "file:///x", first, {}, "")
    assert in_registry(store, tracker)[0] == []
    assert [*in_registry(store, tracker)[1]] == ["models:/m/1"]
    Registrar(store, tracker, "m", first).enter("1", SealHashes("x", None), {}, None)
    assert in_registry(store, tracker) == ([], {})
    following = Registrar(store, tracker, "m", second)
    following.announce_change("1", {"team": "a"}, "champion")
    tracker.tag_version("m", "1", {"team": "a"})
    tracker.point_alias("m", "champion", "1")
    assert in_registry(store, tracker)[0] == []
    assert [*in_registry(store, tracker)[1]] == ["tags of models:/m/1", "alias champion of m"]
    following.enter("1", SealHashes("y", None), {"team": "a"}, "champion")
    assert in_registry(store, tracker) == ([], {})
    *_, last = Ledger(store, "m").entries()
    store.driver.delete(last.key)
    (tag, alias), unfinished = in_registry(store, tracker)
    assert tag == "models:/m/1: tags team was added"
    assert alias == "alias of m champion was added"
    assert unfinished == {}
