"""A backup comes back on an empty machine, elsewhere, and `verify` holds; what was changed is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.retention import backup
from resprout.infra.retention.backup import Backup
from resprout.infra.retention.erase import execute_erasure, plan_erasure
from resprout.infra.retention.mlflow_data import Database
from resprout.infra.retention.restore import Restore
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.manifest import hash_stream
from resprout.infra.store.s3 import S3Driver
from resprout.infra.store.store import ArtifactStore

template = Path()


@pytest.fixture(autouse=True)
def _template(mlflow_template: Path) -> None:
    """An empty database is copied: making one takes seconds."""
    global template
    template = mlflow_template


def opened(home: Path, config: StoreConfig | None = None) -> tuple[ArtifactStore, Tracker, Database]:
    home.mkdir(exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(template, home / "mlflow.db")
    store, tracker = ArtifactStore.from_config(config or StoreConfig(), home), Tracker(MlflowConfig(), home)
    tracker.connect()
    return store, tracker, Database(tracker.uri)


def back_up(home: Path, target: Any) -> Any:
    store, tracker, database = opened(home)
    locks = LeaseLockManager(store.driver)
    counted = Backup(store, tracker, database, target).run(locks)
    locks.close()
    return counted


def restore(source: Any, home: Path, config: StoreConfig | None = None) -> None:
    store, tracker, database = opened(home, config)
    Restore(source, store, tracker, database, home).run()


def rows(database: Path) -> dict[str, list[Any]]:
    """All rows of a SQLite database, but for addresses."""
    with sqlite3.connect(database) as connection:
        names = [
            name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")
        ]
        return {name: sorted(connection.execute(f"select * from {name}"), key=repr) for name in names}


def test_on_an_empty_machine_a_backup_comes_back_and_verify_holds(
    copied: Path, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    place, new = tmp_path / "backup", tmp_path / "new"
    first = resprout("backup", place, "--json", home=copied)
    assert first.code == 0, first.err
    assert first.result["copied"] == first.result["objects"] > 100
    assert back_up(copied, LocalDriver(place)).copied == 0
    held = {"runs": rows(copied / "mlflow.db")["runs"]}
    # The machine on which it comes back has nothing of the old one.
    shutil.move(copied, tmp_path / "gone")
    done = resprout("restore", place, home=new)
    assert done.code == 0, done.err
    assert "`verify --all` holds, and every row has its values; signed by no known key" in done.out
    looked = resprout("verify", "--all", "--json", home=new)
    assert looked.code == 0, looked.err
    assert looked.result["problems"] == []
    assert {row[0] for row in rows(new / "mlflow.db")["runs"]} == {row[0] for row in held["runs"]}
    assert str(copied) not in json.dumps(rows(new / "mlflow.db")["runs"])
    assert str(copied) not in json.dumps(rows(new / "mlflow.db")["model_versions"])
    with pytest.raises(BadInput, match="is not empty"):
        restore(LocalDriver(place), new)


def test_only_what_changed_is_copied_and_what_went_goes(copied: Path, tmp_path: Path, finished: Any) -> None:
    target = LocalDriver(tmp_path / "backup")
    back_up(copied, target)
    store = ArtifactStore.from_config(StoreConfig(), copied)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new.txt").write_text("new")
    digest = store.publish(tmp_path / "more").digest
    gone = next(iter(store.driver.list("exports/")))
    store.driver.delete(gone)
    counted = back_up(copied, target)
    assert counted.copied == 2
    assert target.get_bytes(f"store/content/{digest}/new.txt") == b"new"
    assert target.head(f"store/{gone}") is None


def test_an_erased_artifact_is_backed_up_without_its_bytes(
    copied: Path, tmp_path: Path, finished: Any
) -> None:
    pool = next(
        one["artifact"]["digest"] for one in finished.result["stages"] if one["name"] == "acquire pool"
    )
    target = LocalDriver(tmp_path / "backup")
    back_up(copied, target)
    assert target.head(f"store/content/{pool}/rows.jsonl") is not None
    store, tracker, _ = opened(copied)
    erased = plan_erasure(store, tracker, copied, pool, None)
    execute_erasure(store, tracker, LeaseLockManager(store.driver), erased, "asked")
    back_up(copied, target)
    assert target.head(f"store/content/{pool}/rows.jsonl") is None
    restore(target, tmp_path / "new")
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "new")
    assert store.verify(pool) == []
    assert store.tombstone(pool).reason == "asked"


def test_a_damaged_artifact_is_not_backed_up(copied: Path, tmp_path: Path, finished: Any) -> None:
    plan = next(one["artifact"]["digest"] for one in finished.result["stages"] if one["name"] == "plan")
    path = copied / "store" / "content" / plan / "plan.json"
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(VerificationFailed, match=f"{plan} is not as its manifest says"):
        back_up(copied, LocalDriver(tmp_path / "backup"))
    with pytest.raises(BadInput, match="no finished backup"):
        restore(LocalDriver(tmp_path / "backup"), tmp_path / "new")
    path.unlink()
    with pytest.raises(VerificationFailed, match=f"artifact {plan} is not complete"):
        back_up(copied, LocalDriver(tmp_path / "backup"))


def test_each_change_to_a_backup_is_found(copied: Path, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    back_up(copied, LocalDriver(place))
    kinds = [
        "store/content",
        "store/records",
        "store/seals",
        "store/results",
        "mlflow/tables",
        "mlflow/files",
    ]
    chosen = [next(path for path in sorted((place / kind).rglob("*")) if path.is_file()) for kind in kinds]
    for index, path in enumerate([*chosen, place / "objects.jsonl", place / "backup.json"]):
        data = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
        with pytest.raises(VerificationFailed):
            restore(LocalDriver(place), tmp_path / f"new{index}")
        path.write_bytes(data)
    chosen[0].unlink()
    with pytest.raises((VerificationFailed, BadInput)):
        restore(LocalDriver(place), tmp_path / "last")


@pytest.mark.parametrize(
    "key", ["store/../../evil", "/etc/evil", "store/a\\b", "store/locks/x.json", "elsewhere"]
)
def test_a_backup_that_leads_elsewhere_is_refused(copied: Path, tmp_path: Path, key: str) -> None:
    place = LocalDriver(tmp_path / "backup")
    store = ArtifactStore.from_config(StoreConfig(), copied)
    back_up(copied, place)
    said = backup.read_statement(place, store.signer).predicate
    line = hash_stream(BytesIO(b"evil"), "store/x").model_dump_json().replace('"store/x"', json.dumps(key))
    data = (place.get_bytes("objects.jsonl") or b"") + line.encode() + b"\n"
    place.put_bytes("objects.jsonl", data)
    changed = {**said, "list": hashlib.sha256(data).hexdigest(), "objects": said["objects"] + 1}
    changed.pop("key")
    backup.write_statement(place, store.signer, changed)
    with pytest.raises(VerificationFailed):
        restore(place, tmp_path / "new")
    assert not list(tmp_path.rglob("evil"))


def test_a_database_in_use_or_of_another_schema_is_refused(copied: Path, tmp_path: Path) -> None:
    place = LocalDriver(tmp_path / "backup")
    back_up(copied, place)
    new = tmp_path / "new"
    _, tracker, _ = opened(new)
    tracker.start("mine", {})
    with pytest.raises(BadInput, match="is not empty \\(runs\\)"):
        restore(place, new)
    other = tmp_path / "other"
    opened(other)
    with sqlite3.connect(other / "mlflow.db") as connection:
        connection.execute("update alembic_version set version_num = 'older'")
    store, tracker, _ = opened(tmp_path / "third")
    with pytest.raises(BadInput, match="install mlflow=="):
        Restore(place, store, tracker, Database(f"sqlite:///{other / 'mlflow.db'}"), other).run()


def test_a_gc_waits_for_no_backup_and_a_backup_for_no_gc(copied: Path, tmp_path: Path) -> None:
    store, *_ = opened(copied)
    locks = LeaseLockManager(store.driver)
    locks.acquire_lock("gc", "gc")
    with pytest.raises(BadInput, match="a gc or a backup is at work"):
        back_up(copied, LocalDriver(tmp_path / "backup"))
    locks.close()


def test_to_a_bucket_and_from_it_into_another(copied: Path, tmp_path: Path, s3: Any) -> None:
    name = tmp_path.name
    bucket = S3Driver.from_config(StoreConfig(**s3.settings(f"{name}/backup")))
    first = back_up(copied, bucket)
    assert first.copied == first.objects
    assert back_up(copied, bucket).copied == 0
    config = StoreConfig(**s3.settings(f"{name}/store"))
    restore(bucket, tmp_path / "new", config)
    from resprout.flows.audit.verification import examine_all
    from resprout.flows.workspace import Workspace

    store, tracker, _ = opened(tmp_path / "new", config)
    looked = examine_all(Workspace(store, tracker, tmp_path / "new", None))
    assert looked.problems == []
    assert looked.artifacts > 10
