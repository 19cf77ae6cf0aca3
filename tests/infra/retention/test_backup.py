"""A backup of a small store and MLflow: what it holds, what it costs, and where a restore may write."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.retention import backup
from resprout.infra.retention.backup import Backup
from resprout.infra.retention.mlflow_data import Database
from resprout.infra.retention.restore import MARK, Restore
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.store import ArtifactStore

ARTIFACTS = 6
REQUESTS = {
    "matches", "put_folder", "put_if_absent", "put_bytes", "get_bytes", "read_versioned", "replace_if",
    "read", "head", "list", "entries", "delete", "delete_all", "delete_folder",
}  # fmt: skip


@dataclass
class World:
    """A home with a store and an MLflow, and a place for a backup of both."""

    home: Path
    template: Path
    target: LocalDriver

    def __post_init__(self) -> None:
        self.home.mkdir(exist_ok=True)
        if not (self.home / "mlflow.db").exists():
            shutil.copy(self.template, self.home / "mlflow.db")
            self.sql("delete from experiment_tags")
            self.sql("delete from experiments where name = 'template'")
        self.store = ArtifactStore.from_config(StoreConfig(), self.home)
        self.tracker = Tracker(MlflowConfig(), self.home)
        self.tracker.connect()
        self.database = Database(self.tracker.uri)

    def runs(self, having: str = "") -> list[str]:
        return sorted(run.info.run_id for run in search.runs(self.tracker, having))

    def sql(self, text: str, *values: Any) -> list[Any]:
        with sqlite3.connect(self.home / "mlflow.db") as connection:
            return connection.execute(text, values).fetchall()

    def publish(self, name: str) -> str:
        folder = self.home / "made"
        folder.mkdir()
        (folder / "a.txt").write_text(name)
        (folder / "b.txt").write_text(f"{name} too")
        digest = self.store.publish(folder).digest
        shutil.rmtree(folder, ignore_errors=True)
        return digest

    def run(self, name: str) -> str:
        run = self.tracker.start(name, {})
        self.tracker.log_text(run, f"files of {name}", "said/it.txt")
        self.tracker.end(run)
        return run

    def back_up(self) -> Any:
        locks = LeaseLockManager(self.store.driver)
        try:
            return Backup(self.store, self.tracker, self.database, self.target).run(locks)
        finally:
            locks.close()

    def elsewhere(self, name: str) -> World:
        return World(self.home.parent / name, self.template, self.target)

    def restore(self, **options: Any) -> None:
        """Bring the backup into this home."""
        Restore(self.target, self.store, self.tracker, self.database, self.home, **options).run()


@pytest.fixture
def world(mlflow_template: Path, tmp_path: Path) -> World:
    world = World(tmp_path / "home", mlflow_template, LocalDriver(tmp_path / "backup"))
    for number in range(ARTIFACTS):
        world.publish(str(number))
    world.run("first")
    return world


def test_logged_models_and_traces_come_back_with_their_files(world: World, tmp_path: Path) -> None:
    client = world.tracker.client
    model = client.create_logged_model(world.tracker.experiment_id, name="m")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MLmodel").write_text("flavors: {}")
    client.log_model_artifacts(model.model_id, str(tmp_path / "model"))
    client.finalize_logged_model(model.model_id, "READY")
    trace = world.home / "mlartifacts" / "traces" / "tr-1" / "artifacts"
    trace.mkdir(parents=True)
    (trace / "traces.json").write_text('{"spans": []}')
    columns = "request_id, experiment_id, timestamp_ms, status"
    world.sql(f"insert into trace_info ({columns}) values ('tr-1', ?, 1, 'OK')", world.tracker.experiment_id)
    world.sql("insert into trace_tags values ('mlflow.artifactLocation', ?, 'tr-1')", trace.as_uri())
    world.back_up()
    shutil.rmtree(world.home)
    new = world.elsewhere("new")
    new.restore()
    where = new.tracker.client.get_logged_model(model.model_id).artifact_location
    assert where.startswith((new.home / "mlartifacts").as_uri())
    assert (Path(where.removeprefix("file://")) / "MLmodel").read_text() == "flavors: {}"
    ((moved,),) = new.sql("select value from trace_tags")
    assert moved.startswith((new.home / "mlartifacts").as_uri())
    assert (Path(moved.removeprefix("file://")) / "traces.json").read_text() == '{"spans": []}'


def test_files_never_go_back_to_a_bucket_outside_the_store(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run("far")
    world.back_up()
    # As if MLflow had kept them in a bucket: a name that no folder of this machine is.
    production = (tmp_path / "production").as_uri()
    kept = world.tracker.client.get_experiment(world.tracker.experiment_id).artifact_location
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        changed = f"update {table} set {column} = replace({column}, ?, 's3://production/mlflow')"
        world.sql(changed, kept)
    world.target = LocalDriver(tmp_path / "second")
    reached = monkeypatched(monkeypatch, {"s3://production/mlflow": kept, "s3://drill": production})
    world.back_up()
    new = world.elsewhere("new")
    new.target = world.target
    reached.clear()
    with pytest.raises(BadInput, match=r"at s3://production/mlflow.*--artifacts-to"):
        new.restore()
    assert not reached
    assert list(new.store.driver.list("")) == []
    new.restore(artifacts_to="s3://drill/x")
    assert new.tracker.run(run).info.artifact_uri.startswith("s3://drill/x/experiment-")
    assert {one.partition("/x/")[0] for one in reached} == {"s3://drill"}
    # The next drill does not find the place empty.
    another = world.elsewhere("another")
    another.target = world.target
    with pytest.raises(BadInput, match=r"s3://drill/.* is not empty \(said/it.txt\)"):
        another.restore(artifacts_to="s3://drill/x")


def monkeypatched(monkeypatch: pytest.MonkeyPatch, places: dict[str, str]) -> list[str]:
    """Folders instead of buckets; the addresses that were asked for."""
    from resprout.infra.retention import mlflow_data

    reached: list[str] = []
    real = mlflow_data._repository

    def stand_in(tracker: Tracker, uri: str) -> Any:
        reached.append(uri)
        for bucket, folder in places.items():
            uri = uri.replace(bucket, folder)
        return real(tracker, uri)

    monkeypatch.setattr(mlflow_data, "_repository", stand_in)
    return reached


@pytest.mark.parametrize("at", ["_content", "_object", "_files"])
def test_a_restore_that_was_cut_off_goes_on(world: World, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world.back_up()
    new = world.elsewhere("new")
    with monkeypatch.context() as patched:
        step = getattr(Restore, at)

        def cut(self: Restore, *arguments: Any) -> None:
            step(self, *arguments)
            raise OSError("the power went")

        patched.setattr(Restore, at, cut)
        with pytest.raises(OSError, match="power"):
            new.restore()
    # Another database is not taken for the one of the first try.
    used = world.elsewhere("used")
    run = used.run("of somebody")
    with pytest.raises(BadInput, match="is not empty"):
        Restore(new.target, new.store, used.tracker, used.database, new.home).run()
    assert used.tracker.run(run).info.run_name == "of somebody"
    new.restore()
    assert new.store.driver.get_bytes(MARK) is None
    assert new.runs() == world.runs() != []
    with pytest.raises(BadInput, match="is not empty"):
        new.restore()


class Counting(LocalDriver):
    """A folder that is used as a bucket is, which is to say by requests; they are counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: Counter[str] = Counter()

    def folder(self, prefix: str) -> Path | None:
        return None

    def __getattribute__(self, name: str) -> Any:
        if name in REQUESTS:
            self.requests[name] += 1
        return super().__getattribute__(name)


def test_an_unchanged_backup_asks_for_listings_and_little_else(world: World) -> None:
    world.store.driver = Counting(world.home / "store")
    world.target = Counting(world.target.root)
    first = world.back_up()
    assert first.copied == first.objects > 3 * ARTIFACTS
    made = sum(world.store.driver.requests.values())
    assert made > 3 * ARTIFACTS, "the count counts"
    for driver in (world.store.driver, world.target):
        driver.requests.clear()
    assert world.back_up().copied == 0
    # Of the store: its listings and the lease. Of the backup: listings, and what says how it is now.
    assert sum(world.store.driver.requests.values()) <= 20, world.store.driver.requests
    assert sum(world.target.requests.values()) <= 20, world.target.requests


def test_files_of_an_ended_run_are_fetched_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from resprout.infra.retention import mlflow_data

    fetched = []
    real = mlflow_data.download_files

    def bring(tracker: Tracker, uri: str, target: Path) -> bool:
        fetched.append(uri)
        return real(tracker, uri, target)

    monkeypatch.setattr(mlflow_data, "download_files", bring)
    running = world.tracker.start("running", {})
    world.tracker.log_text(running, "so far", "log.txt")
    world.back_up()
    assert len(fetched) == 2
    fetched.clear()
    (ended,) = world.runs("attributes.status = 'FINISHED'")
    assert world.back_up().copied == 0
    assert [uri.split("/")[-2] for uri in fetched] == [running]
    fetched.clear()
    world.tracker.log_text(ended, "more", "later.txt")
    assert world.back_up().copied > 0
    assert {uri.split("/")[-2] for uri in fetched} == {running, ended}
    assert world.target.get_bytes(f"mlflow/files/{ended}/later.txt") == b"more"


@pytest.mark.parametrize("side", ["source", "target"])
def test_what_was_touched_on_either_side_is_copied_again(world: World, side: str) -> None:
    digest = world.publish("touched")
    key = f"content/{digest}/a.txt" if side == "target" else "results/abc"
    world.store.driver.put_bytes("results/abc", b"one")
    world.back_up()
    assert world.back_up().copied == 0
    driver, path = (world.target, f"store/{key}") if side == "target" else (world.store.driver, key)
    driver.put_bytes(path, b"x" * len(driver.get_bytes(path) or b""))
    assert world.back_up().copied > 0
    assert world.target.get_bytes(f"store/{key}") == world.store.driver.get_bytes(key)


def test_a_run_that_ends_after_the_dump_is_left_to_the_next_backup(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store.driver.put_bytes("seals/before.json", b"{}")
    dump = Database.dump

    def dumped(self: Database, folder: Path) -> dict[str, int]:
        counts = dump(self, folder)
        for key in ("seals/late.json", "timestamps/late", "records/late.json", "results/late"):
            world.store.driver.put_bytes(key, b"{}")
        return counts

    monkeypatch.setattr(Database, "dump", dumped)
    world.back_up()
    held = {key.removeprefix("store/") for key in world.target.list("store/")}
    assert {"seals/before.json", "records/late.json", "results/late"} <= held
    assert not {"seals/late.json", "timestamps/late"} & held


def test_a_dump_between_a_version_and_its_ledger_entry_is_taken_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "PAUSE_SECONDS", 0.0)
    run = world.run("registers")
    registering = LeaseLockManager(world.store.driver)
    registering.acquire_lock("register m", run)
    world.tracker.client.create_registered_model("m")
    dump = Database.dump
    dumps = []

    def dumped(self: Database, folder: Path) -> dict[str, int]:
        dumps.append(dump(self, folder))
        if len(dumps) == 2:
            world.store.driver.put_bytes("registry/abc/00000000.json", b"{}")
            registering.release_lock("register m", run)
        return dumps[-1]

    monkeypatch.setattr(Database, "dump", dumped)
    world.back_up()
    registering.close()
    assert len(dumps) == 3, "once under the lock, once with an entry that came meanwhile"
    assert world.target.get_bytes("store/registry/abc/00000000.json") == b"{}"


def test_a_row_that_arrives_changed_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.back_up()
    new = world.elsewhere("new")
    load = Database.load

    def loaded(self: Database, *arguments: Any) -> None:
        load(self, *arguments)
        new.tracker.client.update_run(new.runs()[0], name="another")

    monkeypatch.setattr(Database, "load", loaded)
    with pytest.raises(VerificationFailed, match="has other rows than the backup"):
        new.restore()


def test_a_restore_counts_only_once_it_was_verified(world: World) -> None:
    world.back_up()
    new = world.elsewhere("new")
    with pytest.raises(VerificationFailed, match=r"brought back, but: models:/m/1 was changed"):
        new.restore(verify=lambda: ["models:/m/1 was changed"])
    assert new.store.driver.get_bytes(MARK) is not None
    new.restore()
    assert new.store.driver.get_bytes(MARK) is None
