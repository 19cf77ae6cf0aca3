"""The plan of a gc over a store of 10,000 artifacts with a registry of 500 versions, and its memory.

    PYTHONPATH=tests/support python tests/benchmarks/bench_retention.py

Bounds: 30 s, and 200 MB more than the process had with all its libraries loaded. A second store of a tenth of
the size shows how both grow. Exits 1 where one is over.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from many import build, register

ARTIFACTS, SECONDS, MEGABYTES = 10_000, 30.0, 200.0


def peak_megabytes() -> float:
    """The most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))


def measure(home: Path) -> None:
    """Print seconds, megabytes and artifacts to free of a plan over the store below `home`."""
    from resprout.configs.infrastructure import MlflowConfig, StoreConfig
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.retention.gc import plan_collection, take_inventory
    from resprout.infra.retention.gc_roots import RootFinder
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.store import ArtifactStore

    store, tracker = ArtifactStore.from_config(StoreConfig(), home), Tracker(MlflowConfig(), home)
    tracker.connect()
    before = peak_megabytes()
    began = time.perf_counter()
    planned = plan_collection(
        take_inventory(store), RootFinder(store, tracker, LeaseLockManager(store.driver), 30).find(), 0.0
    )
    seconds = time.perf_counter() - began
    sys.stdout.write(f"{seconds} {peak_megabytes() - before} {len(planned.freed)}\n")


def main() -> int:
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return 0
    from resprout.configs.infrastructure import MlflowConfig
    from resprout.infra.mlflow.tracking import Tracker

    over = 0
    for artifacts in (ARTIFACTS // 10, ARTIFACTS):
        with tempfile.TemporaryDirectory() as name:
            home = Path(name)
            Tracker(MlflowConfig(), home).connect()
            runs = build(home / "store", artifacts)
            kept = runs[: len(runs) // 2]
            register(f"sqlite:///{home / 'mlflow.db'}", "many", kept)
            done = subprocess.run(
                [sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True
            )
            seconds, grown, freed = map(float, done.stdout.split()[-3:])
            right = freed == artifacts - sum(map(len, kept))
            over += seconds > SECONDS or grown > MEGABYTES or not right
            print(
                f"gc plan over {artifacts} artifacts, {len(kept)} versions: {seconds:.1f} s "
                f"(bound {SECONDS}), {grown:.0f} MB more (bound {MEGABYTES:.0f}), {freed:.0f} to free"
            )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
