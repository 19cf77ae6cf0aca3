"""MLflow runs whose process is gone, which would seem to run for ever: they are ended as KILLED."""

from __future__ import annotations

from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.tracking import WRITER, Tracker


def end_dead_runs(tracker: Tracker, locks: LeaseLockManager, own: str) -> None:
    """End what dead processes left running: their runs, and the nested runs of this run's earlier attempt."""
    _end_nested(tracker, own)
    for run in tracker.running_of(f"tags.`{WRITER}` LIKE 'writer-%'"):
        if run.info.run_id != own and not locks.is_locked(run.data.tags[WRITER]):
            _end_nested(tracker, run.info.run_id)
            tracker.end(run.info.run_id, "KILLED")


def _end_nested(tracker: Tracker, parent: str) -> None:
    for run in tracker.running_of(f"tags.`mlflow.parentRunId` = '{parent}'"):
        tracker.end(run.info.run_id, "KILLED")
