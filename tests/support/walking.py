"""A run of the toy that resumes in a process of its own, as a terminal or a worker starts it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from resprout.configs.errors import Terminated
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.session import NoDisplay, Session, end_on_signals
from resprout.infra.mlflow.tracking import FLOW_RUN, Tracker
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.job import Job
from resprout.tasks.core.run import Run
from toys import Walk, walker


@flow(name="compress")
def walk(home: str, stop_at: int) -> str:
    """The digest of six steps; before `stop_at` the process waits for a signal, once."""
    place = Path(home)
    store = ArtifactStore.from_config(StoreConfig(), place)
    tracker = Tracker(MlflowConfig(), place)
    tracker.connect()
    before = tracker.resume(FLOW_RUN, str(flow_run.id))
    parent = before or tracker.start("walk", {FLOW_RUN: str(flow_run.id)})
    locks = LeaseLockManager(store.driver)
    run = Run(
        store=store, tracker=tracker, locks=locks, results=ArtifactResults.of(store), display=NoDisplay(),
        home=place, mlflow_run_id=parent, retries=0,
    )  # fmt: skip
    try:
        with tracker.running(parent):
            return walker(run, Job(Walk(log=str(place / "log"), every=100, stop_at=stop_at))).digest
    finally:
        locks.close()


def main(arguments: list[str]) -> Any:
    """Walk as a command does; its exit code."""
    end_on_signals(Session().interrupt)
    try:
        walk(arguments[0], int(arguments[1]))
    except Terminated as end:
        return end.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
