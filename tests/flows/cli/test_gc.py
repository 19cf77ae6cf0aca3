"""`resprout gc` over a finished run: what MLflow and its tags say is kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from many import chain
from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit.verification import Examined, examine, examine_all
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import HOLD, Tracker
from resprout.infra.provenance.seal import collection_key
from resprout.infra.retention.erase import execute_erasure, plan_erasure
from resprout.infra.retention.gc import Collector, plan_collection, take_inventory
from resprout.infra.retention.gc_roots import HELD, RECENT, REGISTERED, RootFinder, set_hold
from resprout.infra.store import tombstones
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def tracker(copied: Path) -> Tracker:
    tracker = Tracker(MlflowConfig(), copied)
    tracker.connect()
    return tracker


@pytest.fixture
def store(copied: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), copied)


def planned(store: ArtifactStore, tracker: Tracker, keep_days: float = 0.0) -> Any:
    return plan_collection(
        take_inventory(store),
        RootFinder(store, tracker, LeaseLockManager(store.driver), keep_days).find(),
        0.0,
    )


def unregister(tracker: Tracker) -> None:
    tracker.client.delete_registered_model("tiny-pruned")


def besides_the_removal(looked: Examined) -> list[str]:
    """What is wrong but for the version that a test took from the registry, which the ledger knows."""
    removed = "models:/tiny-pruned/1 was removed from the registry"
    assert any(problem.startswith(removed) for problem in looked.problems)
    return [problem for problem in looked.problems if not problem.startswith(removed)]


def parent_of(tracker: Tracker) -> str:
    return next(search.runs(tracker, "tags.`resprout.gate` = 'passed'")).info.run_id


def test_a_registered_version_keeps_all_that_its_run_made(
    store: ArtifactStore, tracker: Tracker, finished: Any
) -> None:
    made = chain(Path(store.home) / "store", "stray")
    found = planned(store, tracker)
    assert set(found.freed) == {one.digest for one in made}
    run = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    assert found.kept == {REGISTERED: len(run)}


def test_without_the_version_only_what_else_holds_it(
    store: ArtifactStore, tracker: Tracker, finished: Any
) -> None:
    everything = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    unregister(tracker)
    assert set(planned(store, tracker).freed) == everything
    assert planned(store, tracker, keep_days=1).kept == {RECENT: len(everything)}
    parent = parent_of(tracker)
    tracker.client.set_tag(parent, HOLD, "case 7")
    assert planned(store, tracker).kept == {HELD: len(everything)}
    tracker.client.delete_tag(parent, HOLD)
    exported = next(search.runs(tracker, "tags.`resprout.stage` = 'export'"))
    tracker.client.set_tag(exported.info.run_id, HOLD, "case 7")
    kept = planned(store, tracker)
    assert kept.freed.keys() < everything
    assert exported.data.tags["resprout.digest"] not in kept.freed
    report = next(one for one in finished.result["stages"] if one["name"] == "report")
    assert report["artifact"]["digest"] in kept.freed
    tracker.client.delete_tag(exported.info.run_id, HOLD)
    for key in list(store.driver.list("seals/")):
        store.driver.delete(key)
    for status in ("RUNNING", "FAILED", "KILLED", "FINISHED"):
        # How it ended, and that no seal tells of it, takes nothing from a run of late.
        tracker.client.update_run(parent, status)
        assert planned(store, tracker, keep_days=1).kept == {RECENT: len(everything)}
    assert set(planned(store, tracker).freed) == everything


def test_no_edit_of_a_version_and_no_lost_statement_frees_what_it_needs(
    store: ArtifactStore, tracker: Tracker, finished: Any
) -> None:
    everything = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    exported = next(one for one in finished.result["stages"] if one["name"] == "export")["artifact"]["digest"]
    version = tracker.version("models:/tiny-pruned/1")

    def without(*tags: str) -> None:
        for tag in tags:
            tracker.client.delete_model_version_tag("tiny-pruned", "1", tag)

    def removed(room: str) -> None:
        for key in list(store.driver.list(f"{room}/")):
            store.driver.delete(key)

    without("resprout.record", "resprout.report_record")
    assert planned(store, tracker).kept == {REGISTERED: len(everything)}, "the seal of its run"
    removed("seals")
    without(*(tag for tag in version.tags if tag.startswith("resprout.") and not tag.endswith("record")))
    kept = planned(store, tracker)
    assert exported not in kept.freed, "the ledger"
    assert version.tags["resprout.report"] not in kept.freed
    removed("registry")
    assert exported not in planned(store, tracker).freed, "its source"
    with sqlite3.connect(tracker.home / "mlflow.db") as database:
        database.execute("update model_versions set source = 'models:/elsewhere'")
    assert planned(store, tracker).kept == {REGISTERED: len(everything)}, "its run, as MLflow has it"


def test_a_version_that_was_removed_from_the_registry_is_told_of(
    store: ArtifactStore, tracker: Tracker
) -> None:
    record = tracker.version("models:/tiny-pruned/1").tags["resprout.record"]
    finder = RootFinder(store, tracker, LeaseLockManager(store.driver), 0.0)
    finder.find()
    assert finder.removed == {}
    unregister(tracker)
    finder.find()
    assert record in finder.removed["models:/tiny-pruned/1"]


@pytest.mark.parametrize("place", ["version", "model"])
def test_a_hold_in_the_registry(store: ArtifactStore, tracker: Tracker, place: str) -> None:
    if place == "version":
        tracker.client.set_model_version_tag("tiny-pruned", "1", HOLD, "case 7")
    else:
        tracker.client.set_registered_model_tag("tiny-pruned", HOLD, "case 7")
    assert planned(store, tracker).kept.keys() == {HELD}


def test_the_command_deletes_only_when_told_and_verify_finds_nothing_afterwards(
    copied: Path, store: ArtifactStore, tracker: Tracker, resprout: Callable[..., Any]
) -> None:
    made = chain(copied / "store", "stray")
    env = {"RESPROUT_INFRA__RETENTION__GRACE_HOURS": "0", "RESPROUT_INFRA__RETENTION__KEEP_DAYS": "0"}
    dry = resprout("gc", "--json", home=copied, env=env)
    assert set(dry.result["artifacts"]) == {one.digest for one in made}
    assert store.check(made[0].digest)
    done = resprout("gc", "--delete", home=copied, env=env)
    assert done.code == 0, done.err
    assert "freed: 10 artifacts" in done.out
    assert "kept for a registered version" in done.out
    assert not any(store.check(one.digest) for one in made)
    assert examine_all(Workspace(store, tracker, copied, None)).problems == []
    assert planned(store, tracker).freed == {}


def test_checkpoints_are_counted_and_go_and_no_one_else_stumbles_over_them(
    copied: Path, store: ArtifactStore, tracker: Tracker, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    recovered = next(one for one in store.records() if one[1].stage == "recover")[1].key
    for key in (recovered, f"recover-{'a' * 64}"):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "state" / "place.json").write_text('{"step": 7}')
        StageCheckpoints(store, key, lambda: None).save(tmp_path / "state", 7)
    size = sum(entry.size for entry in store.driver.entries(f"checkpoints/{recovered}/"))
    assert examine_all(Workspace(store, tracker, copied, None)).problems == []
    backed = resprout("backup", tmp_path / "backup", home=copied)
    assert backed.code == 0, backed.err
    assert not (tmp_path / "backup" / "store" / "checkpoints").exists()
    dry = resprout("gc", "--json", home=copied)
    assert (dry.result["checkpoints"], dry.result["freed_bytes"]) == ({recovered: size}, size)
    done = resprout("gc", "--delete", home=copied)
    assert "freed: 0 artifacts and the checkpoints of 1 stage, 0.0 MB" in done.out
    assert {key.split("/")[1] for key in store.driver.list("checkpoints/")} == {f"recover-{'a' * 64}"}
    env = {"RESPROUT_INFRA__RETENTION__CHECKPOINT_DAYS": "0"}
    assert set(resprout("gc", "--delete", "--json", home=copied, env=env).result["checkpoints"]) == {
        f"recover-{'a' * 64}"
    }
    assert list(store.driver.list("checkpoints/")) == []


def test_of_an_old_run_the_seal_and_a_statement_of_what_went_stay(
    copied: Path, store: ArtifactStore, tracker: Tracker, resprout: Callable[..., Any]
) -> None:
    env = {"RESPROUT_INFRA__RETENTION__GRACE_HOURS": "0", "RESPROUT_INFRA__RETENTION__KEEP_DAYS": "0"}
    unregister(tracker)
    named = planned(store, tracker)
    strays = {"pins/stray", "gc/stray", "signatures/stray", "seals/stray.json", "registry/stray"}
    for key in (*strays, f"gc/{'0' * 64}"):
        store.driver.put_bytes(key, b"who wrote this?")
    done = resprout("gc", "--delete", "--json", home=copied, env=env)
    assert done.code == 0, done.err
    assert set(done.result["artifacts"]) == set(named.freed)
    assert set(done.result["records"]) == {step.record for step in named.steps}
    assert done.result["removed"] == {"models:/tiny-pruned/1": "freed"}
    assert set(done.result["strays"]) == strays
    for key in strays:
        store.driver.delete(key)
    left = {key.partition("/")[0] for key in store.driver.list("") if not key.startswith(("tmp/", "locks/"))}
    assert left == {"registry", "seals", "collected"}
    (run,) = (key[6:-5] for key in store.driver.list("seals/"))
    assert run == parent_of(tracker)
    looked = examine_all(Workspace(store, tracker, copied, None))
    assert besides_the_removal(looked) == []
    assert any(f"records of run {run}" in note for note in looked.notes)
    store.driver.delete(collection_key(run))
    assert besides_the_removal(examine_all(Workspace(store, tracker, copied, None)))


def test_what_gc_left_of_a_run_is_still_looked_at(
    copied: Path, store: ArtifactStore, tracker: Tracker
) -> None:
    unregister(tracker)
    exported = next(search.runs(tracker, "tags.`resprout.stage` = 'export'"))
    set_hold(tracker, exported.info.run_id, "case 7")
    locks, inventory = LeaseLockManager(store.driver), take_inventory(store)
    finder = RootFinder(store, tracker, locks, 0.0)
    Collector(store, locks, inventory, finder.find, sealed=finder.sealed()).run(
        plan_collection(inventory, finder.find(), 0.0)
    )
    # The hold is on a stage's run, so the seal of the run around it says nothing else.
    assert besides_the_removal(examine_all(Workspace(store, tracker, copied, None))) == []
    digest = exported.data.tags["resprout.digest"]
    store.driver.delete(next(store.driver.list(f"content/{digest}/")))
    (problem,) = besides_the_removal(examine_all(Workspace(store, tracker, copied, None)))
    assert "is missing" in problem


def test_what_was_erased_is_explained_after_gc_took_what_it_was_made_from(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any
) -> None:
    unregister(tracker)
    selected = next(one for one in finished.result["stages"] if one["name"] == "select")["artifact"]["digest"]
    locks = LeaseLockManager(store.driver)
    execute_erasure(store, tracker, locks, plan_erasure(store, tracker, copied, selected, None), "request 17")
    inventory, finder = take_inventory(store), RootFinder(store, tracker, locks, 0.0)
    Collector(store, locks, inventory, finder.find, sealed=finder.sealed()).run(
        plan_collection(inventory, finder.find(), 0.0)
    )
    assert "acquire_model" in {store.get_record(record).stage for record in take_inventory(store).ages}
    left = {key.split("/")[1] for key in store.driver.list("content/")}
    assert left <= set(tombstones.erased(store.driver))
    place = Workspace(store, tracker, copied, None)
    all_of_it, one = examine_all(place), examine(place, selected)
    assert besides_the_removal(all_of_it) == one.problems == []
    for looked in (all_of_it, one):
        assert any("were erased on" in note for note in looked.notes)
        assert any("gc collected" in note for note in looked.notes)


def test_a_hold_is_set_and_lifted_and_is_no_change_to_what_was_sealed(
    copied: Path, store: ArtifactStore, tracker: Tracker
) -> None:
    for reference in ("models:/tiny-pruned/1", "models:/tiny-pruned@candidate", "models:/tiny-pruned"):
        set_hold(tracker, reference, "case 7")
        assert planned(store, tracker).kept.keys() == {HELD}
        set_hold(tracker, reference, None)
        assert planned(store, tracker).kept.keys() == {REGISTERED}
    parent = parent_of(tracker)
    set_hold(tracker, parent, "case 7")
    assert tracker.run(parent).data.tags[HOLD] == "case 7"
    assert examine_all(Workspace(store, tracker, copied, None)).problems == []
    for unknown in ("models:/nobody", "models:/nobody/3", "0" * 32, "word"):
        with pytest.raises(BadInput):
            set_hold(tracker, unknown, "case 7")


def test_a_registry_that_does_not_answer_is_no_missing_model(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(name: str) -> None:
        raise MlflowException("down", INTERNAL_ERROR)

    monkeypatch.setattr(tracker.client, "get_registered_model", down)
    with pytest.raises(Transient):
        set_hold(tracker, "models:/tiny-pruned", "case 7")


def test_the_verb_says_what_it_did(copied: Path, tracker: Tracker, resprout: Callable[..., Any]) -> None:
    done = resprout("hold", "models:/tiny-pruned@candidate", "--reason", "case 7", home=copied)
    assert done.code == 0, done.err
    assert tracker.version("models:/tiny-pruned/1").tags[HOLD] == "case 7"
    neither = resprout("hold", "models:/tiny-pruned/1", home=copied)
    assert neither.code == 2
    assert "--reason" in neither.err
