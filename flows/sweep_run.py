"""The MLflow run of a sweep, in which the runs of its variants are nested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from resprout.configs.sweep import SweepResult
from resprout.flows.sweep_session import SweepSession
from resprout.infra.markdown import NOTE, code, link, run_page
from resprout.infra.mlflow.tracking import SWEEP_NAME, WRITER, Tracker
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

RESULT = "sweep.json"
"""File of the run with what `resprout sweep --json` prints."""
REPORT = "report"
"""Folder of the run with the page that compares the variants, and its charts."""


@dataclass(frozen=True)
class SweepRun:
    """An open run of a sweep, with the store and the leases that its own stages use."""

    id: str
    store: ArtifactStore
    tracker: Tracker
    locks: LeaseLockManager


@contextmanager
def sweep_run(session: SweepSession) -> Iterator[SweepRun]:
    """Open the run; it ends with the block: FAILED on an error, KILLED where a signal ends the process."""
    first = session.base
    infra = first.config.infra
    tracker = Tracker(infra.mlflow, first.home)
    tracker.connect()
    store = ArtifactStore.from_config(infra.store, first.home, infra.proof)
    run_id = tracker.start(session.config.name, {SWEEP_NAME: session.config.name})
    with ExitStack() as at_end:
        at_end.enter_context(tracker.running(run_id))
        locks = LeaseLockManager(store.driver)
        at_end.callback(locks.close)
        store.in_use = InUseReferences(store.driver, locks)
        at_end.callback(store.in_use.close)
        params = {
            "base": session.config.base,
            "variants": len(session.to_run) or _trials(session),
            **{key: json.dumps(values) for key, values in session.varied().items()},
        }
        tracker.log(run_id, params=params, tags={WRITER: store.in_use.writer})
        yield SweepRun(run_id, store, tracker, locks)


def _trials(session: SweepSession) -> int:
    return session.config.search.optuna.trials if session.config.search is not None else 0


def describe(run: SweepRun, result: SweepResult) -> None:
    """Write the result into the run: a file, metrics, and a description that leads to its variants."""
    tracker = run.tracker
    tracker.log_text(run.id, result.model_dump_json(indent=1), RESULT)
    if result.page is not None:
        tracker.log_folder(run.id, Path(result.page).parent, REPORT)
    done = sum(one.result.status == "done" for one in result.variants)
    counts = {
        "variants_done": float(done),
        "variants_left_out": float(sum(one.left_out for one in result.variants)),
    }
    tracker.log(run.id, metrics=counts, tags={NOTE: "\n".join(_note(run, result))})


def _note(run: SweepRun, result: SweepResult) -> Iterator[str]:
    yield f"A sweep: {len(result.variants)} variants of one config. Their runs are nested in this one."
    yield ""
    if result.front is not None:
        best = ", ".join(map(code, result.front)) or "none"
        yield f"The front, of variants that no other dominates: {best}."
        yield ""
    for one in result.variants:
        name = code(one.name)
        if (own := one.result.mlflow_run_id) is not None:
            name = link(one.name, run_page(run.tracker.experiment_id, own))
        settings = ", ".join(code(f"{key}={json.dumps(value)}") for key, value in one.settings.items())
        status = "left out" if one.left_out else one.result.status
        yield f"- {name}: {settings or 'the base as it is'}; {status}"
