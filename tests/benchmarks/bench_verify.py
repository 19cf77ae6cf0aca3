"""`verify` against sha256sum on the same files, in turn: one large weight file, some middling, many small.

    PYTHONPATH=tests/support python tests/benchmarks/bench_verify.py

Bound: at least 0.8 of sha256sum's speed (medians). Exits 1 below.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.store import ArtifactStore

SIZES = [400_000_000, *[20_000_000] * 10, *[50_000] * 200]
ROUNDS, BOUND = 5, 0.8


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "made"
        folder.mkdir()
        for index, size in enumerate(SIZES):
            (folder / f"{index}.safetensors").write_bytes(os.urandom(size))
        store = ArtifactStore.from_config(StoreConfig(), Path(name) / "home")
        digest = store.publish(folder, move=True).digest
        content = store.driver.folder(f"content/{digest}")
        assert content is not None
        files = [str(path) for path in sorted(content.iterdir())]
        plain, ours = [], []
        for _ in range(ROUNDS):
            plain.append(
                timed(lambda: subprocess.run(["sha256sum", *files], check=True, capture_output=True))
            )
            ours.append(timed(lambda: store.verify(digest)))
        assert store.verify(digest) == []
    mb = sum(SIZES) / 1e6
    one, other = mb / statistics.median(plain), mb / statistics.median(ours)
    sys.stdout.write(
        f"{mb:.0f} MB: sha256sum {one:.0f} MB/s, verify {other:.0f} MB/s: {other / one:.2f} of it "
        f"(bound {BOUND})\n"
    )
    return int(other / one < BOUND)


if __name__ == "__main__":
    sys.exit(main())
