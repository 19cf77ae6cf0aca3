"""Checkpoints on a folder and on S3: whole or not there, of their stage alone, signed, through kills."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from attacks import DEEP
from proxy import proxy
from resprout.configs.errors import BadInput, StageFailed, Transient
from resprout.configs.infrastructure import ProofConfig, StoreConfig
from resprout.infra import retry
from resprout.infra.store import checkpoints as module
from resprout.infra.store import s3 as s3_module
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

KEY = f"recover-{'a' * 64}"


def holder() -> None:
    """The lease is held."""


def of(store: ArtifactStore, guard: Any = holder, key: str = KEY) -> StageCheckpoints:
    return StageCheckpoints(store, key, guard)


def fill(folder: Path, step: int, size: int = 1000) -> Path:
    """A state of training as a trainer leaves it."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    data = len(header).to_bytes(8, "little") + header + bytes([step % 256]) * size
    (folder / "state" / "weights.safetensors").write_bytes(data)
    (folder / "place.json").write_text(json.dumps({"step": step}))
    return folder


def step_of(kept: StageCheckpoints) -> int | None:
    """The step of the newest checkpoint, which is whole."""
    with kept.latest() as folder:
        if folder is None:
            return None
        step = int(json.loads((folder / "place.json").read_text())["step"])
        weights = (folder / "state" / "weights.safetensors").read_bytes()
        assert weights.endswith(bytes([step % 256]) * 1000)
        return step


def names(store: ArtifactStore) -> list[int]:
    """Steps of all checkpoints of which anything lies in the store."""
    return sorted({int(key.split("/")[2][:12]) for key in store.driver.list("checkpoints/")})


def damage(store: ArtifactStore, step: int, ending: str) -> None:
    """Flip the last byte of an object of a step's checkpoint behind the store's back."""
    top = f"checkpoints/{KEY}/{step:012d}-"
    (key,) = (one for one in store.driver.list(top) if one.endswith(ending))
    data = store.driver.get_bytes(key) or b""
    store.driver.put_bytes(key, data[:-1] + bytes([data[-1] ^ 1]))


def test_the_newest_is_opened_and_of_earlier_ones_the_last_stays(
    store: ArtifactStore, tmp_path: Path
) -> None:
    kept = of(store)
    assert step_of(kept) is None
    for step in (5, 10, 20, 30):
        folder = fill(tmp_path / "state", step)
        kept.save(folder, step)
        assert list(folder.iterdir()) == []
        assert step_of(of(store)) == step
    assert names(store) == [20, 30]
    assert step_of(of(store, key=f"recover-{'b' * 64}")) is None
    kept.save(fill(tmp_path / "state", 30), 30)
    assert names(store) == [30]
    kept.clear()
    assert (step_of(kept), list(store.driver.list("checkpoints/"))) == (None, [])


def test_what_is_brought_here_is_removed_afterwards(store: ArtifactStore, tmp_path: Path) -> None:
    of(store).save(fill(tmp_path / "state", 5), 5)
    with of(store).latest() as folder:
        assert folder is not None
    assert folder.exists() == (store.driver.folder("checkpoints") is not None)


@pytest.mark.parametrize("ending", ["weights.safetensors", ".json", "place.json"])
def test_damaged_bytes_fall_back_to_the_one_before(
    store: ArtifactStore, tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = of(store)
    for step in (100, 200):
        kept.save(fill(tmp_path / "state", step), step)
    if ending == ".json":
        (key,) = (one for one in store.driver.list(f"checkpoints/{KEY}/000000000200-") if one.count("/") == 2)
        store.driver.put_bytes(key, (store.driver.get_bytes(key) or b"")[:-30])
    else:
        damage(store, 200, ending)
    assert step_of(kept) == 100
    assert "000000000200" in caplog.text
    # The next one is of an earlier step than the damaged one, which goes.
    kept.save(fill(tmp_path / "state", 150), 150)
    assert (step_of(kept), names(store)) == (150, [100, 150])


@pytest.mark.parametrize("name", ["place.json", "state/weights.safetensors", "manifest"])
def test_json_deeper_than_any_stack_falls_back_to_the_one_before(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Planted by somebody who can write the store, with a manifest that fits it."""
    store = ArtifactStore.from_config(StoreConfig(uri=str(tmp_path / "store")), tmp_path / "home")
    kept = of(store)
    kept.save(fill(tmp_path / "state", 100), 100)
    folder = fill(tmp_path / "state", 200)
    if name == "manifest":
        kept.save(folder, 200)
        (key,) = (one for one in store.driver.list(f"checkpoints/{KEY}/000000000200-") if one.count("/") == 2)
        store.driver.put_bytes(key, DEEP)
    else:
        header = b"" if name.endswith(".json") else len(DEEP).to_bytes(8, "little")
        (folder / name).write_bytes(header + DEEP)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_require_plain", lambda folder: None)
            kept.save(folder, 200)
    assert step_of(of(store)) == 100
    assert "000000000200" in caplog.text
    assert "is not used" in caplog.text


def test_a_missing_or_added_file_is_damage(store: ArtifactStore, tmp_path: Path) -> None:
    kept = of(store)
    for step in (1, 2, 3):
        kept.save(fill(tmp_path / "state", step), step)
    (key,) = (
        one for one in store.driver.list(f"checkpoints/{KEY}/000000000003-") if one.endswith("place.json")
    )
    store.driver.delete(key)
    assert step_of(kept) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("optimizer.pt", pickle.dumps({"a": 1})),
        ("optimizer.safetensors", pickle.dumps({"a": "x" * 100})),
        ("place.json", pickle.dumps({"a": 1})),
        ("weights.safetensors", b""),
        ("notes", b"{}"),
    ],
    ids=["name", "safetensors", "json", "empty", "no ending"],
)
def test_only_safetensors_and_json_are_kept(
    store: ArtifactStore, tmp_path: Path, name: str, data: bytes
) -> None:
    kept = of(store)
    kept.save(fill(tmp_path / "state", 1), 1)
    folder = fill(tmp_path / "state", 2)
    (folder / name).write_bytes(data)
    with pytest.raises(BadInput, match=name):
        kept.save(folder, 2)
    assert step_of(kept) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no file"):
        kept.save(tmp_path / "empty", 3)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.store import ArtifactStore
from test_checkpoints import KEY, fill, holder
store = ArtifactStore.from_config(StoreConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
real = store.driver.put_folder
def put_folder(*given, **named):
    real(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
store.driver.put_folder = put_folder
StageCheckpoints(store, KEY, holder).save(fill(Path(sys.argv[2]) / "state", 20), 20)
"""


def plain(config: StoreConfig) -> str:
    """A config as JSON, secrets too."""
    return json.dumps(
        {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in config
            if value is not None
        }
    )


def test_killed_between_files_and_manifest_the_one_before_counts(
    store: ArtifactStore, config: StoreConfig, tmp_path: Path
) -> None:
    kept = of(store)
    for step in (5, 10):
        kept.save(fill(tmp_path / "state", step), step)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, plain(config), str(tmp_path / "other"), str(Path(__file__).parent)],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert names(store) == [10, 20]
    assert step_of(kept) == 10
    kept.save(fill(tmp_path / "state", 15), 15)
    assert (step_of(kept), names(store)) == (15, [10, 15])


def test_only_who_holds_the_lease_writes(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = (LeaseLockManager(store.driver, term_seconds=1.0) for _ in range(2))
    try:
        assert first.acquire_lock(KEY, "first", acquire_timeout=0)
        one = of(store, first.guard(KEY))
        one.save(fill(tmp_path / "one", 10), 10)
        # As one that was paused for longer than its lease, and taken over from.
        first._stop.set()
        assert second.acquire_lock(KEY, "second", acquire_timeout=30)
        two = of(store, second.guard(KEY))
        assert step_of(two) == 10
        two.save(fill(tmp_path / "two", 20), 20)
        with pytest.raises(StageFailed, match="lost its lease"):
            one.save(fill(tmp_path / "one", 30), 30)
        assert (step_of(two), names(store)) == (20, [10, 20])
    finally:
        second.close()


def test_a_lease_that_is_lost_while_files_go_up_shows_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if len(asked) == 4:
            raise StageFailed("this process lost its lease")

    kept = of(store, guard)
    kept.save(fill(tmp_path / "state", 10), 10)
    with pytest.raises(StageFailed, match="lost its lease"):
        kept.save(fill(tmp_path / "state", 20), 20)
    assert step_of(of(store)) == 10


def signed(config: StoreConfig, home: Path, key: Ed25519PrivateKey | None, **changes: Any) -> ArtifactStore:
    pem = key and SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
    return ArtifactStore.from_config(config, home, ProofConfig(signing_key=pem, **changes))


def test_with_a_key_only_what_it_signed_is_gone_on_from(
    config: StoreConfig, store: ArtifactStore, tmp_path: Path
) -> None:
    own, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    mine, theirs = (signed(config, tmp_path / "home", key) for key in (own, other))
    of(mine).save(fill(tmp_path / "state", 10), 10)
    assert step_of(of(mine)) == 10
    of(theirs).save(fill(tmp_path / "state", 20), 20)
    assert step_of(of(mine)) == 10
    of(store).save(fill(tmp_path / "state", 30), 30)
    of(theirs).save(fill(tmp_path / "state", 40), 40)
    assert step_of(of(mine)) is None
    assert step_of(of(signed(config, tmp_path / "home", own, require_signatures=False))) is None
    known = f"ed25519:{other.public_key().public_bytes_raw().hex()}"
    assert step_of(of(signed(config, tmp_path / "home", own, verification_keys=(known,)))) == 40
    # Nor does one count that was moved from another stage or step, whoever signed it.
    of(mine).save(fill(tmp_path / "state", 50), 50)
    (key,) = (one for one in mine.driver.list(f"checkpoints/{KEY}/000000000050-") if one.count("/") == 2)
    for old in list(mine.driver.list(f"checkpoints/{KEY}/000000000050-")):
        mine.driver.put_bytes(old.replace("000000000050", "000000000060"), mine.driver.get_bytes(old) or b"")
        mine.driver.put_bytes(old.replace("a" * 64, "b" * 64), mine.driver.get_bytes(old) or b"")
    assert step_of(of(mine)) == 50
    assert step_of(of(mine, key=f"recover-{'b' * 64}")) is None
    # What was signed is the hashes, so changed files with a changed manifest do not count either.
    data = json.loads(mine.driver.get_bytes(key) or b"")
    data["signatures"][0]["sig"] = "A" * 86 + "=="
    mine.driver.put_bytes(key, canonical_json(data))
    assert step_of(of(mine)) is None


def test_a_store_that_is_down_costs_a_checkpoint_and_one_warning(
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    kept, real, down, tries = of(store), store.driver.put_folder, [True], []

    def put_folder(*given: Any, **named: Any) -> None:
        tries.append(1)
        real(*given, **named)
        if down:
            raise Transient("the store is away")

    kept.save(fill(tmp_path / "state", 10), 10)
    monkeypatch.setattr(store.driver, "put_folder", put_folder)
    kept.save(fill(tmp_path / "state", 20), 20)
    assert len(tries) > 1
    assert list((tmp_path / "state").iterdir()) == []
    assert step_of(of(store)) == 10
    tries.clear()
    for step in (30, 40):
        kept.save(fill(tmp_path / "state", step), step)
    assert len(tries) == 2, "training waits once for an outage"
    assert caplog.text.count("no checkpoint of step") == 1
    down.clear()
    kept.save(fill(tmp_path / "state", 50), 50)
    assert (step_of(of(store)), names(store)) == (50, [10, 50])


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore.from_config(StoreConfig(uri=str(tmp_path / "store")), tmp_path / "home")
    kept = of(store)
    kept.save(fill(tmp_path / "state", 10), 10)

    def move(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", move)
    with pytest.raises(StageFailed, match=r"disk under .* is full"):
        kept.save(fill(tmp_path / "state", 20), 20)
    assert step_of(kept) == 10


@pytest.mark.parametrize("fault", ["503", "reset", "lost", "cut", "wrong"])
def test_a_bucket_failing_now_and_then_never_shows_half_a_checkpoint(
    s3: Any, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = s3_module.Config
    monkeypatch.setattr(s3_module, "Config", lambda **given: real(**{**given, "read_timeout": 2}))
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 2.0)
    count = iter(range(10**6))

    def now_and_then(method: str, path: str) -> str | None:
        if "checkpoints" not in path or (fault in ("cut", "wrong") and (method != "GET" or "?list" in path)):
            return None
        return fault if next(count) % 4 == 1 else None

    settings, prefix = s3.settings(uuid.uuid4().hex), tmp_path / "home"
    whole = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "reader")
    with proxy(s3.endpoint_url) as through:
        store = ArtifactStore.from_config(StoreConfig(**{**settings, "endpoint_url": through.url}), prefix)
        through.choose = now_and_then
        kept = of(store)
        for step in (10, 20, 30):
            kept.save(fill(tmp_path / "state", step), step)
            assert step_of(of(whole)) == step
        assert step_of(kept) in (20, 30)
        assert through.seen, "the fault was never met"
