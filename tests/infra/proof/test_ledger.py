"""The ledger of a registered model: a chain that shows what was removed, added or written by another."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resprout.configs.errors import VerificationFailed
from resprout.configs.schema import MlflowConfig, StoreConfig
from resprout.infra.proof.ledger import Expected, Ledger, folded
from resprout.infra.proof.seal import Sealed, enter, read_seal, seal_key, write_seal
from resprout.infra.proof.shown import Shown
from resprout.infra.proof.snapshot import Places, differences, placed
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker

HERE = Places("file:///home/store", "file:///home/mlartifacts")


@pytest.fixture
def store(home: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), home)


@pytest.fixture
def tracker(home: Path, mlflow_template: Path) -> Tracker:
    shutil.copy(mlflow_template, home / "mlflow.db")
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    return tracker


def expected(store: ArtifactStore, name: str = "m") -> Expected:
    return folded(list(Ledger(store, name).entries()))


def keys(store: ArtifactStore) -> list[str]:
    return list(store.driver.list(Ledger(store, "m").prefix))


def filled(store: ArtifactStore) -> Ledger:
    ledger = Ledger(store, "m")
    ledger.append("r1", HERE, versions={"1": {"source": "a"}}, aliases={"candidate": "1"}, seal="s1")
    ledger.append("r2", HERE, versions={"2": {"source": "b"}}, aliases={"candidate": "2"}, seal="s2")
    ledger.append(None, HERE, aliases={"champion": "1"})
    ledger.append(None, HERE, aliases={"champion": None})
    return ledger


def test_the_entries_fold_to_what_was_said_last(store: ArtifactStore) -> None:
    filled(store)
    found = expected(store)
    assert found.versions == {"1": {"source": "a"}, "2": {"source": "b"}}
    assert found.aliases == {"candidate": "2"}
    assert found.seals == {"r1": "s1", "r2": "s2"}
    assert expected(store, "another") == Expected()


def test_an_entry_that_is_removed_moved_or_exchanged_breaks_the_chain(store: ArtifactStore) -> None:
    filled(store)
    first, second, third, _ = keys(store)
    kept = {key: store.driver.get_bytes(key) or b"" for key in keys(store)}
    store.driver.delete(second)
    with pytest.raises(VerificationFailed, match="is not number 1"):
        expected(store)
    store.driver.put_bytes(second, kept[third])
    with pytest.raises(VerificationFailed, match="is not number 1"):
        expected(store)
    store.driver.put_bytes(second, kept[second])
    other = Ledger(store, "other")
    other.append("r1", HERE, versions={"1": {"source": "evil"}})
    store.driver.put_bytes(first, store.driver.get_bytes(f"{other.prefix}00000000.json") or b"")
    with pytest.raises(VerificationFailed, match="does not follow"):
        expected(store)
    store.driver.put_bytes(first, kept[first])
    assert expected(store).aliases == {"candidate": "2"}


def test_an_entry_written_anew_does_not_fit_what_follows(store: ArtifactStore) -> None:
    filled(store)
    elsewhere = ArtifactStore.from_config(StoreConfig(uri=str(store.home / "elsewhere")), store.home)
    Ledger(elsewhere, "m").append("r1", HERE, versions={"1": {"source": "evil"}})
    forged = elsewhere.driver.get_bytes(keys(store)[0]) or b""
    store.driver.put_bytes(keys(store)[0], forged)
    with pytest.raises(VerificationFailed, match="does not follow the one before"):
        expected(store)


def test_writers_at_once_lose_no_entry(store: ArtifactStore) -> None:
    def add(number: int) -> None:
        Ledger(store, "m").append(None, HERE, aliases={f"a{number}": "1"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(12)))
    assert expected(store).aliases == {f"a{number}": "1" for number in range(12)}


def test_a_change_by_hand_never_becomes_what_is_expected(store: ArtifactStore, tracker: Tracker) -> None:
    run_id = tracker.start("run", {})
    version = tracker.make_version("m", "file:///x", run_id, {"team": "a"}, "text")
    tracker.point_alias("m", "candidate", str(version.version))
    tracker.end(run_id)
    sealed = write_seal(store, tracker, run_id)
    enter(store, tracker, "m", "1", run_id, sealed, {"team": "a"}, "candidate")
    assert list(Shown(store, tracker).version("m", "1")) == []
    tracker.tag_version("m", "1", {"verdict": "passed"})
    tracker.client.set_registered_model_alias("m", "champion", "1")
    enter(store, tracker, "m", "1", "a later run", Sealed("x", None), {"team": "a"}, "candidate")
    assert len(keys(store)) == 1, "nothing new was done, so nothing is said"
    found = list(Shown(store, tracker).version("m", "1"))
    assert found == ["models:/m/1: tags verdict was added", "alias of m champion was added"]
    tracker.tag_version("m", "1", {"team": "b"})
    enter(store, tracker, "m", "1", "a later run", Sealed("x", None), {"team": "b"}, "candidate")
    assert expected(store).versions["1"]["tags"] == {"team": "b"}


def test_a_run_that_died_after_it_registered_is_sealed_by_the_next(
    store: ArtifactStore, tracker: Tracker
) -> None:
    died = tracker.start("died", {})
    tracker.make_version("m", "file:///x", died, {}, "")
    enter(store, tracker, "m", "1", "next", Sealed("x", None), {}, None)
    seal = read_seal(store, died)
    assert seal is not None
    assert seal.said["sealed_by"] == "next"
    assert tracker.run(died).info.status == "KILLED"
    assert list(Shown(store, tracker).run(seal)) == []


def test_a_seal_that_the_ledger_names_is_not_written_anew(store: ArtifactStore, tracker: Tracker) -> None:
    run_id = tracker.start("run", {})
    tracker.make_version("m", "file:///x", run_id, {}, "")
    tracker.end(run_id)
    enter(store, tracker, "m", "1", run_id, write_seal(store, tracker, run_id), {}, None)
    store.driver.delete(seal_key(run_id))
    enter(store, tracker, "m", "1", "next", Sealed("x", None), {}, "candidate")
    assert read_seal(store, run_id) is None


def test_a_place_that_moved_changes_no_fact() -> None:
    there = Places("s3://bucket/team", "s3://bucket/runs")
    here = {"uri": "file:///home/store/content/x", "files": ["file:///home/mlartifacts/1"]}
    moved = {"uri": "s3://bucket/team/content/x", "files": ["s3://bucket/runs/1"]}
    assert placed(here, HERE) == {"uri": "{store}/content/x", "files": ["{artifacts}/1"]}
    assert placed(moved, there) == placed(here, HERE)
    assert placed("file:///home/store-of-others/x", HERE) == "file:///home/store-of-others/x"


def test_differences_name_each_fact() -> None:
    then = {"a": {"b": "1", "c": "2"}, "gone": 1}
    assert list(differences(then, {"a": {"b": "1", "c": "3"}, "new": 2}, "run")) == [
        "run a c was changed: it was '2' and is '3'",
        "run gone was removed",
        "run new was added",
    ]
    assert list(differences(then, then)) == []
