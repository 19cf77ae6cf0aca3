"""Make a further format of a finished run: as a flow, and a run in MLflow, of its own."""

from __future__ import annotations

from prefect import flow

from resprout.flows.formats import EXPORT, Exported, FurtherFormat, formats_in
from resprout.flows.session import Session
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import WRITER
from resprout.infra.store import exports
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.results import ArtifactResults
from resprout.tasks.core.run import Run

OF = "resprout.exports"
"""Tag that names the record of the report on the run to which the format belongs."""


def export_again(wanted: FurtherFormat, workspace: Workspace, session: Session) -> Exported:
    """The format, found in the cache or made; `session.result` lists the stages."""
    store, tracker = workspace.store, workspace.tracker
    store.ensure_writable()

    @flow(name="resprout-export", validate_parameters=False)
    def export(record: str, form: str) -> None:
        locks = LeaseLockManager(store.driver, stop=session.stop_if_interrupted)
        store.in_use = InUseReferences(store.driver, locks, stop=session.stop_if_interrupted)
        tags = {**session.tags, OF: record, WRITER: store.in_use.writer}
        run_id = tracker.start(f"{wanted.run.config.name} as {form}", tags)
        session.result.mlflow_run_id = run_id
        try:
            with tracker.running(run_id):
                run = Run(
                    store=store,
                    tracker=tracker,
                    locks=locks,
                    results=ArtifactResults.of(store),
                    display=session.display,
                    home=workspace.home,
                    mlflow_run_id=run_id,
                    stages=session.result.stages,
                    cancelled=lambda: session.interrupted,
                )
                wanted.artifacts.make(run, wanted.todo, wanted.device)
                exports.note(store, wanted.artifacts[EXPORT].digest)
        finally:
            store.in_use.close()
            locks.close()

    export(wanted.run.record_id, wanted.form)
    return formats_in(store, wanted.artifacts[EXPORT])[wanted.form]
