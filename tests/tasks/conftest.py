"""A run with its own store and MLflow database, and stages small enough to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import MlflowConfig, StoreConfig
from resprout.tasks.job import Progress, silent


class Quiet:
    """A display that only counts."""

    def started(self, label: str) -> Progress:
        return silent

    def waiting(self, stage: str) -> None:
        pass

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        pass


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database; making one takes seconds, copying it none."""
    from resprout.infra.tracking import Tracker

    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(MlflowConfig(experiment="template"), folder).connect()
    return folder / "mlflow.db"


@pytest.fixture
def make_run(prefect_server: None, mlflow_template: Path) -> Callable[..., Any]:
    """Run a function of a Run inside a Prefect flow, on the store under `home`, and return what it
    returns."""
    import shutil

    from prefect import flow

    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.infra.tracking import Tracker
    from resprout.tasks.run import Run

    def start(
        home: Path, steps: Callable[[Run], Any], store: StoreConfig | None = None, **options: Any
    ) -> Any:
        home.mkdir(exist_ok=True)
        if not (home / "mlflow.db").exists():
            shutil.copy(mlflow_template, home / "mlflow.db")
        artifacts = ArtifactStore.from_config(store or StoreConfig(), home)
        tracker = Tracker(MlflowConfig(), home)
        tracker.connect()

        @flow(name="toy")
        def toy() -> Any:
            run_id = tracker.start("toy", {})
            run = Run(
                store=artifacts,
                tracker=tracker,
                locks=LeaseLockManager(artifacts.driver),
                results=ArtifactResults.of(artifacts),
                display=Quiet(),
                home=home,
                mlflow_run_id=run_id,
                **{"retries": 0, "retry_delay_seconds": 0.0, **options},
            )
            with tracker.running(run_id):
                return steps(run)

        return toy()

    return start
