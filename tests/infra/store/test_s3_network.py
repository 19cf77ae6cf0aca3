"""Faults of a real network before a real S3 server: what is published is whole, what is read is right."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import Proxy, proxy
from resprout.configs.errors import Transient
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store import s3 as s3_module
from resprout.infra.store.store import ArtifactStore

LARGE = 50_000_000


@pytest.fixture
def through(s3: Any) -> Iterator[Proxy]:
    with proxy(s3.endpoint_url) as found:
        yield found


@pytest.fixture
def settings(s3: Any, through: Proxy) -> dict[str, str]:
    return {**s3.settings(uuid.uuid4().hex), "endpoint_url": through.url}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of more than two seconds is given up; one is too short for a part on a busy machine."""
    real = s3_module.Config
    monkeypatch.setattr(s3_module, "Config", lambda **given: real(**{**given, "read_timeout": 2}))


def fill(folder: Path, size: int = LARGE) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(random.Random(5).randbytes(size))
    (folder / "small.json").write_text('{"a": 1}')
    return folder


def same(opened: Path, made: Path) -> bool:
    return all((opened / file.name).read_bytes() == file.read_bytes() for file in made.iterdir())


@pytest.mark.parametrize("fault", Proxy.FAULTS)
def test_each_fault_now_and_then_leaves_the_bytes_right(
    fault: str, through: Proxy, settings: dict[str, str], quick: None, tmp_path: Path
) -> None:
    count, mutex = iter(range(10**6)), threading.Lock()

    def every_third(method: str, path: str) -> str | None:
        # A flipped bit in a listing or in a lock is not the artifact's: bodies are what `wrong` is about.
        if fault in ("cut", "wrong") and (method != "GET" or "/content/" not in path):
            return None
        with mutex:
            return fault if next(count) % 3 == 1 else None

    made = fill(tmp_path / "made")
    here = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "one")
    there = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "two")
    through.choose, through.delay_seconds = every_third, 2.5
    digest = here.publish(made).digest
    with there.open(digest) as opened:
        assert same(opened, made)
    assert through.seen, "the fault was never met"
    through.choose = lambda method, path: None
    there.verify(digest)


def test_a_link_that_always_damages_is_told_from_a_damaged_object(
    through: Proxy, settings: dict[str, str], tmp_path: Path
) -> None:
    made = fill(tmp_path / "made", 100_000)
    here = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "one")
    there = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "two")
    digest = here.publish(made).digest
    through.choose = lambda method, path: "wrong" if method == "GET" and "weights" in path else None
    with pytest.raises(Transient, match="does not have the hash of the manifest"), there.open(digest):
        pass
    assert list((tmp_path / "two").rglob("weights.bin")) == [], "nothing wrong stays on this machine"
    through.choose = lambda method, path: None
    with there.open(digest) as opened:
        assert same(opened, made), "and the artifact is still there for all"


def test_a_bucket_that_is_down_is_said_and_shows_nothing_half(
    through: Proxy, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    made = fill(tmp_path / "made")
    here = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "one")
    count = iter(range(10**6))
    through.choose = lambda method, path: "503" if next(count) > 3 else None
    with pytest.raises(Transient, match="is busy or failing"):
        here.publish(made)
    through.choose = lambda method, path: None
    there = ArtifactStore.from_config(StoreConfig(**settings), tmp_path / "two")
    assert list(there.driver.list("manifests/")) == []
    digest = here.publish(made).digest
    with there.open(digest) as opened:
        assert same(opened, made)
