from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from resprout.infra.store.cache import LocalCache
from resprout.infra.store.filesystem import private_folder
from resprout.infra.store.manifest import scan

SIZE = 1000

READER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from resprout.infra.store.cache import LocalCache
    from resprout.infra.store.manifest import Manifest
    manifest = Manifest.loads(Path(sys.argv[2]).read_bytes(), sys.argv[3])
    with LocalCache(Path(sys.argv[1]), 2500).open(manifest, None):
        print("open", flush=True)
        time.sleep(60)
""")


class Source:
    """Artifacts of 1000 bytes each, and how often each was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []

    def artifact(self, name: str):
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / name / "x").write_bytes(name.encode()[:1] * SIZE)
        return scan(self.folder / name)

    def fetch(self, name: str):
        def bring(target: Path) -> None:
            self.fetched.append(name)
            (target / "x").write_bytes((self.folder / name / "x").read_bytes())

        return bring


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path / "source")


@pytest.fixture
def cache(tmp_path):
    """Room for two artifacts."""
    return LocalCache(tmp_path / "cache", 2500)


def use(cache, source, name):
    with cache.open(source.artifact(name), source.fetch(name)) as opened:
        return (opened / "x").read_bytes()


def test_what_was_used_longest_ago_goes_first(cache, source):
    for name in ("a", "b", "a", "c", "a", "b"):
        assert use(cache, source, name) == name.encode() * SIZE
    assert source.fetched == ["a", "b", "c", "b"]


def test_what_is_in_use_stays(cache, source):
    first = source.artifact("a")
    with cache.open(first, source.fetch("a")) as opened:
        for name in ("b", "c", "d"):
            use(cache, source, name)
        assert (opened / "x").read_bytes() == b"a" * SIZE
        use(cache, source, "a")
    assert source.fetched == ["a", "b", "c", "d"]


def test_more_than_the_limit_in_use_at_once_works(cache, source):
    with (
        cache.open(source.artifact("a"), source.fetch("a")) as a,
        cache.open(source.artifact("b"), source.fetch("b")) as b,
        cache.open(source.artifact("c"), source.fetch("c")) as c,
    ):
        assert [(opened / "x").read_bytes()[:1] for opened in (a, b, c)] == [b"a", b"b", b"c"]


def test_another_process_protects_until_it_is_killed(cache, source, tmp_path):
    manifest = source.artifact("a")
    use(cache, source, "a")
    (tmp_path / "manifest").write_bytes(manifest.dumps())
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(cache.root), str(tmp_path / "manifest"), manifest.digest],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert reader.stdout.readline() == "open\n"
        for name in ("b", "c", "d"):
            use(cache, source, name)
        assert (cache.root / "content" / manifest.digest / "x").exists()
    finally:
        os.kill(reader.pid, signal.SIGKILL)
        reader.wait()
    use(cache, source, "e")
    assert not (cache.root / "content" / manifest.digest).exists()


@pytest.mark.parametrize("damage", [b"a" * (SIZE - 1), b"b" * SIZE])
def test_a_damaged_copy_is_fetched_again(cache, source, damage):
    manifest = source.artifact("a")
    use(cache, source, "a")
    copy = cache.root / "content" / manifest.digest / "x"
    copy.unlink()
    copy.write_bytes(damage)
    assert use(cache, source, "a") == b"a" * SIZE
    assert source.fetched == ["a", "a"]


def test_a_touched_copy_is_hashed_again_but_not_fetched(cache, source):
    manifest = source.artifact("a")
    use(cache, source, "a")
    os.utime(cache.root / "content" / manifest.digest / "x", (1, 1))
    use(cache, source, "a")
    assert source.fetched == ["a"]


def test_a_failed_fetch_leaves_nothing(cache, source):
    def fail(target):
        (target / "x").write_bytes(b"half")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError), cache.open(source.artifact("a"), fail):
        pass
    assert list((cache.root / "tmp").iterdir()) == []
    assert use(cache, source, "a") == b"a" * SIZE


def test_what_a_killed_process_left_is_swept(tmp_path):
    program = (
        "import sys, os; from pathlib import Path\n"
        "from resprout.infra.store.filesystem import private_folder\n"
        "with private_folder(Path(sys.argv[1])) as f: (f / 'x').touch(); os.kill(os.getpid(), 9)"
    )
    with private_folder(tmp_path) as alive:
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
        assert len(list(tmp_path.glob("work-*/x"))) == 1
        with private_folder(tmp_path):
            assert list(tmp_path.glob("work-*/x")) == []
            assert alive.is_dir()
    assert list(tmp_path.iterdir()) == []
