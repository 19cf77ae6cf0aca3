"""`resprout erase`: no byte of the row is left, and `verify` says erased, not tampered with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.retention.erase import CopySearch, copies_in_run, execute_erasure, plan_erasure
from resprout.infra.retention.gc_roots import set_hold
from resprout.infra.retention.row_search import Fingerprints
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

REASON = "request 17 of its owner"
VERSION = "models:/tiny-pruned/1"


@pytest.fixture
def store(copied: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), copied)


@pytest.fixture
def tracker(copied: Path) -> Tracker:
    tracker = Tracker(MlflowConfig(), copied)
    tracker.connect()
    return tracker


def digest_of(finished: Any, stage: str) -> str:
    return next(one["artifact"]["digest"] for one in finished.result["stages"] if one["name"] == stage)


def chosen_row(store: ArtifactStore, finished: Any) -> dict[str, Any]:
    """A row of the pool that recovery was trained on."""
    return json.loads(store.read(digest_of(finished, "select"), "selected.jsonl").splitlines()[0])


def everywhere(home: Path, text: str) -> list[Path]:
    """Files anywhere below home that hold a text, but for tombstones, which may name an id."""
    rooms = [home / name for name in ("store", "mlartifacts", "reports", "cache", "verified")]
    found = [path for room in rooms for path in room.rglob("*") if path.is_file()]
    return [path for path in found if text.encode() in path.read_bytes() and "records" not in path.parts]


def test_a_row_is_gone_wherever_it_came_and_verify_says_erased(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any, resprout: Callable[..., Any]
) -> None:
    pool, row = digest_of(finished, "acquire pool"), chosen_row(store, finished)
    before = everywhere(copied, row["instruction"])
    assert {"rows.jsonl", "selected.jsonl"} <= {path.name for path in before}

    dry = resprout("erase", pool, "--row", row["id"], "--reason", REASON, "--json", home=copied)
    assert dry.code == 0, dry.err
    assert dry.result["erased"] is False
    assert everywhere(copied, row["instruction"]) == before
    assert set(dry.result["artifacts"]) >= {pool, digest_of(finished, "select")}
    assert any("safetensors" in path for path in dry.result["not_searched"])

    done = resprout("erase", pool, "--row", row["id"], "--reason", REASON, "--yes", home=copied)
    assert done.code == 0, done.err
    assert everywhere(copied, row["instruction"]) == []
    assert everywhere(copied, row["id"]) == []
    assert not store.check(pool)
    assert store.manifest(pool)
    with pytest.raises(BadInput, match=f"was erased on 20.*: {REASON}"):
        store.read(pool, "rows.jsonl")
    with pytest.raises(BadInput, match="was erased on"), store.open(pool):
        pass

    looked = resprout("verify", VERSION, "--json", home=copied)
    assert looked.code == 0, looked.err
    assert looked.result["problems"] == []
    assert any(f"artifact {pool} were erased on" in note for note in looked.result["notes"])
    # Once more is no fault, and changes nothing.
    stone = store.tombstone(pool)
    again = plan_erasure(store, tracker, copied, pool, row["id"])
    execute_erasure(store, tracker, LeaseLockManager(store.driver), again, REASON)
    assert store.tombstone(pool) == stone
    assert stone.reason == REASON


def test_what_is_missing_without_a_tombstone_or_there_in_spite_of_one_is_a_problem(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any, tmp_path: Path
) -> None:
    model = digest_of(finished, "acquire model")
    shutil.copytree(copied / "store" / "content" / model, tmp_path / "kept")
    locks, wanted = LeaseLockManager(store.driver), plan_erasure(store, tracker, copied, model, None)
    set_hold(tracker, VERSION, "case 7")
    with pytest.raises(BadInput, match=f"artifact {model} is under a legal hold"):
        execute_erasure(store, tracker, locks, wanted, REASON)
    assert store.check(model)
    set_hold(tracker, VERSION, None)
    execute_erasure(store, tracker, locks, wanted, REASON)
    assert store.verify(model) == []
    assert list(store.driver.list(f"content/{model}/")) == []

    (copied / "store" / "content" / model).mkdir()
    shutil.copy(tmp_path / "kept" / "config.json", copied / "store" / "content" / model / "config.json")
    assert "is there, but a tombstone says that it was erased" in store.verify(model)[0]
    (copied / "store" / "content" / model / "config.json").unlink()

    with pytest.raises(BadInput, match="are not kept again"):
        store.publish(tmp_path / "kept")
    plan = digest_of(finished, "plan")
    store.driver.delete(f"content/{plan}/plan.json")
    assert "is missing" in store.verify(plan)[0]

    stone = copied / "store" / "tombstones" / f"{model}.json"
    text = stone.read_text()
    stone.unlink()
    assert any("is missing" in problem for problem in store.verify(model))
    stone.with_name(f"{plan}.json").write_text(text)
    with pytest.raises(VerificationFailed, match="is that of another artifact"):
        store.verify(plan)


def test_a_row_that_is_not_there_is_refused(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any, resprout: Callable[..., Any]
) -> None:
    with pytest.raises(BadInput, match="has the row 'nobody knows this'"):
        plan_erasure(store, tracker, copied, digest_of(finished, "acquire pool"), "nobody knows this")
    with pytest.raises(BadInput, match="there is no artifact"):
        plan_erasure(store, tracker, copied, "0" * 64, None)
    assert resprout("erase", "../x", "--reason", REASON, home=copied).code == 2


def test_with_a_whole_data_set_go_its_rows_wherever_they_came(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any, tmp_path: Path
) -> None:
    pool, row = digest_of(finished, "acquire pool"), chosen_row(store, finished)
    before = everywhere(copied, row["instruction"])
    assert len({path.name for path in before}) > 1
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "copy.jsonl").write_bytes(store.read(pool, "rows.jsonl"))
    (twin / "notes.md").write_text("of another owner")
    other = store.publish(twin).digest
    whole = plan_erasure(store, tracker, copied, pool, None)
    assert whole.files[other].keys() == {"copy.jsonl"}
    assert digest_of(finished, "select") in whole.files
    assert any("safetensors" in path for path in whole.not_searched)
    assert not any(path.startswith(pool) for path in whole.not_searched)
    assert whole.breaks == {}
    execute_erasure(store, tracker, LeaseLockManager(store.driver), whole, REASON)
    assert everywhere(copied, row["instruction"]) == []
    assert store.read(other, "notes.md") == b"of another owner"


def test_a_source_leaves_its_copies_behind_and_says_so_and_what_would_break(
    copied: Path, store: ArtifactStore, tracker: Tracker, finished: Any
) -> None:
    model, exported = digest_of(finished, "acquire model"), digest_of(finished, "export")
    found = plan_erasure(store, tracker, copied, model, None)
    assert list(found.files) == [model]
    assert any(path.startswith(exported) and "tokenizer" in path for path in found.left_behind)
    assert found.breaks == {}
    gone = plan_erasure(store, tracker, copied, exported, None)
    assert any("tokenizer" in path for path in gone.breaks[VERSION])


def test_an_erasure_that_was_cut_off_goes_on(
    copied: Path,
    store: ArtifactStore,
    tracker: Tracker,
    finished: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, row = digest_of(finished, "acquire pool"), chosen_row(store, finished)
    locks, deleted = LeaseLockManager(store.driver), store.driver.delete_all

    def cut_off(keys: Any) -> None:
        deleted(keys)
        raise InterruptedError

    monkeypatch.setattr(store.driver, "delete_all", cut_off)
    with pytest.raises(InterruptedError):
        execute_erasure(store, tracker, locks, plan_erasure(store, tracker, copied, pool, row["id"]), REASON)
    monkeypatch.undo()
    assert everywhere(copied, row["instruction"])
    execute_erasure(store, tracker, locks, plan_erasure(store, tracker, copied, pool, row["id"]), REASON)
    assert everywhere(copied, row["instruction"]) == []


def test_files_of_runs_are_looked_at_one_at_a_time(tmp_path: Path) -> None:
    kept = []

    class Client:
        def list_artifacts(self, run_id: str, folder: str | None) -> list[Any]:
            return [type("File", (), {"is_dir": False, "path": f"{name}.bin"}) for name in "abc"]

        def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
            kept.append(len(list(Path(folder).parent.rglob("*.bin"))))
            (Path(folder) / path).write_text(path)
            return str(Path(folder) / path)

    tracker: Any = type("Tracker", (), {"client": Client(), "shown_uri": "here"})
    search = CopySearch(tracker, {hashlib.sha256(b"b.bin").hexdigest()}, Fingerprints())
    hits = copies_in_run(tracker, "run", search.match)
    assert list(hits) == ["run/b.bin"]
    assert kept == [0, 0, 0]
