"""What a run would find in the store, and what it would make; nothing is run."""

from __future__ import annotations

from pathlib import Path

from resprout.configs.schema import RunConfig
from resprout.flows.acquisition import acquire
from resprout.flows.session import NoDisplay
from resprout.flows.sources import Sources
from resprout.flows.steps import Made, Steps
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker
from resprout.tasks.run import Forecast, Run


def look_up(
    config: RunConfig, store: ArtifactStore, tracker: Tracker, sources: Sources, home: Path
) -> tuple[Made, list[Forecast]]:
    """What a run would find in the store, and for each stage whether it would run; runs none.

    A reference without a digest stands for what is not made yet.
    """
    run = Run(
        store=store,
        tracker=tracker,
        locks=LeaseLockManager(store.driver),
        results=ArtifactResults.of(store),
        display=NoDisplay(),
        home=home,
        mlflow_run_id="",
        look_up_only=True,
    )
    acquired = acquire(config, run, sources)
    return Steps(config, run, acquired).all(), run.forecasts
