"""Run a recorded run once more, in a folder of its own, with its sources from the store.

Nothing is fetched from where it first came from, nothing is registered, and the store that holds the original
is only read. The stages are the flow's own, so locks, retries and nested MLflow runs are those of any run.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from resprout.configs.errors import VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.configs.load import Loaded
from resprout.flows.conclude import Conclusion
from resprout.flows.recorded_run import RecordedRun
from resprout.flows.session import Session
from resprout.flows.stages import Artifacts
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.run import Run

CONFIG = "record.json"
"""File name for the config that was read from a record."""


def run_again(run: RecordedRun, before: ArtifactStore, folder: Path, session: Session) -> ArtifactStore:
    """The store under `folder` with all artifacts of the second run; `session.result` lists its stages."""
    now = ArtifactStore.from_config(StoreConfig(), folder)
    tracker = Tracker(MlflowConfig(), folder)
    tracker.connect()
    config = run.config
    loaded = Loaded(config, folder / CONFIG, folder, folder, {})

    @flow(name="resprout-reproduce", validate_parameters=False)
    def reproduce(record: str) -> None:
        brought = {step: _copy(ref, before, now) for step, ref in run.inputs(before).items()}
        artifacts = Artifacts(run.steps, {step.id: ref for step, ref in brought.items()})
        tags = {**session.tags, "resprout.reproduces": record}
        run_id = tracker.start(f"{config.name} reproduced", tags)
        session.result.mlflow_run_id = run_id
        with tracker.running(run_id):
            again = Run(
                store=now,
                tracker=tracker,
                locks=LeaseLockManager(now.driver, stop=session.stop_if_interrupted),
                results=ArtifactResults.of(now),
                display=session.display,
                home=folder,
                mlflow_run_id=run_id,
                stages=session.result.stages,
                cancelled=lambda: session.interrupted,
            )
            try:
                artifacts.make(again, run.steps)
                conclusion = Conclusion(loaded, again, artifacts, session, f"resprout reproduce {record}")
                conclusion.again({step.label: ref.digest for step, ref in brought.items()})
            finally:
                again.locks.close()

    reproduce(run.record_id)
    return now


def _copy(ref: ArtifactRef, before: ArtifactStore, now: ArtifactStore) -> ArtifactRef:
    """An artifact and its record in another store, the bytes hashed on the way."""
    with before.open(ref.digest) as folder:
        manifest = now.publish(folder)
    if manifest.digest != ref.digest:
        raise VerificationFailed(f"artifact {ref.digest} became {manifest.digest} when it was copied")
    record = now.put_record(before.get_record(ref.record))
    return ref.model_copy(update={"uri": now.uri(ref.digest), "record": record})
