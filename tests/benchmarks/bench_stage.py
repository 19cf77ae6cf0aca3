"""What a stage costs beside its own work: key, look-up, lease, record, MLflow run; made and found.

    PYTHONPATH=tests/support python tests/benchmarks/bench_stage.py

Median over ten stages that do next to nothing, each on the artifact of the one before. Bounds: 0.5 s on the
embedded default (folder, SQLite, Prefect's embedded server), 1.5 s with a bucket, MLflow and Prefect over
HTTP. Exits 1 where one is over.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from servers import free_port, mlflow_server, prefect_server, s3_server

QUIET = {"PREFECT_LOGGING_LEVEL": "ERROR", "MLFLOW_LOGGING_LEVEL": "WARNING"}
STAGES, EMBEDDED, SERVED = 10, 0.5, 1.5


def measure(home: Path) -> None:
    """Print the medians of stages that are made and that are found, in this process."""
    from prefect import flow

    from resprout.configs.load import load_infra
    from resprout.flows.session import NoDisplay
    from resprout.infra.environment import prepare
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.in_use import InUseReferences
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.tasks.core.job import Job
    from resprout.tasks.core.run import Run
    from resprout.tasks.core.stage import stage
    from toys import Knobs, write_text

    infra, _ = load_infra(None)
    prepare(infra, home)
    store, tracker = ArtifactStore.from_config(infra.store, home), Tracker(infra.mlflow, home)
    tracker.connect()
    toy = stage("gate", kind="text")(write_text)

    @flow
    def chain() -> list[float]:
        run_id = tracker.start("bench", {})
        locks = LeaseLockManager(store.driver)
        store.in_use = InUseReferences(store.driver, locks)
        run = Run(store, tracker, locks, ArtifactResults.of(store), NoDisplay(), home, run_id)
        spent, inputs = [], {}
        for index in range(STAGES):
            began = time.perf_counter()
            inputs = {"before": toy(run, Job(Knobs(text=str(index)), 1), inputs, role=f"{index}")}
            spent.append(time.perf_counter() - began)
        store.in_use.close()
        locks.close()
        return spent

    chain_of = {name: statistics.median(chain()) for name in ("made", "found")}
    sys.stdout.write(f"{chain_of['made']} {chain_of['found']}\n")


def run(home: Path, env: dict[str, str]) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, __file__, str(home)], env={**os.environ, **QUIET, **env},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    made, found = map(float, done.stdout.split()[-2:])
    return made, found


def main() -> int:
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
        return 0
    over = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {f"embedded (bound {EMBEDDED})": (run(folder / "home", {}), EMBEDDED)}
        prefect, mlflow = free_port(), free_port()
        with (
            s3_server() as bucket,
            mlflow_server(folder / "mlflow", mlflow) as tracking,
            prefect_server(folder / "prefect", prefect),
        ):
            env = {
                "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
                "RESPROUT_INFRA__MLFLOW__TRACKING_URI": tracking.uri,
                **{
                    f"RESPROUT_INFRA__STORE__{key.upper()}": value
                    for key, value in bucket.settings(uuid.uuid4().hex).items()
                },
            }
            results[f"servers over HTTP (bound {SERVED})"] = (run(folder / "served", env), SERVED)
    for name, ((made, found), bound) in results.items():
        over += max(made, found) > bound
        print(f"stage overhead, {name}: made {made:.2f} s, found {found:.2f} s")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
