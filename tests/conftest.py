"""Fixtures of the whole suite: quiet libraries, one Prefect server for the session, tiny models."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from servers import S3Server

# Set before any test module imports the libraries that read these.
os.environ.update(
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    MLFLOW_LOGGING_LEVEL="WARNING",
    MLFLOW_HTTP_REQUEST_MAX_RETRIES="2",
    MLFLOW_HTTP_REQUEST_TIMEOUT="5",
    PREFECT_LOGGING_LEVEL="CRITICAL",
    PREFECT_LOGGING_SERVER_LEVEL="CRITICAL",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)
for name in [name for name in os.environ if name.startswith("RESPROUT_")]:
    del os.environ[name]
# Else every test with a home of its own would leave a server behind.
os.environ["RESPROUT_INFRA__PREFECT__KEEP_SERVER_SECONDS"] = "0"


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """Let no later search for garbage walk what a process of many test files has piled up: seconds each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _handlers_of_signals() -> Iterator[None]:
    """Put back what a test set: a command handles signals by the process's handlers, and so do trainings."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server on a database of its own for all tests that run flows."""
    from prefect.logging.configuration import setup_logging
    from prefect.testing.utilities import prefect_test_harness

    # Its handler keeps the stderr of now, and not that of a test which captures its own and closes it.
    setup_logging()
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


LONGEST = (
    "proof", "bad_input", "shards", "servers", "schedules", "signals", "old_home", "sweep", "forged", "run",
    "interfaces", "unfinished", "red_team", "up", "checks", "reproduce", "signed", "backup", "outages",
    "plan", "triggers", "deploy", "main", "validate", "verification", "table",
)  # fmt: skip
"""Test files that take longest: they begin first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order within a file stays."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


SHARED_S3 = "S3_OF_ALL_WORKERS"
"""Where workers of pytest-xdist find the S3 server that the process above them started."""


def pytest_sessionstart(session: pytest.Session) -> None:
    """Show the seed, and start one S3 server before the workers, if any: a machine holds only one."""
    from seeds import VARIABLE, first_seed
    from servers import s3_server, weed

    # Written here, as -q leaves out the header.
    if terminal := session.config.pluginmanager.get_plugin("terminalreporter"):
        terminal.write_line(f"random seed: {VARIABLE}={first_seed()} (make test-random draws another)")
    if not session.config.getoption("numprocesses", None) or SHARED_S3 in os.environ or not weed():
        return
    running = ExitStack()
    session.config.add_cleanup(running.close)
    os.environ[SHARED_S3] = running.enter_context(s3_server()).endpoint_url


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests that need one; they keep apart by prefixes."""
    from servers import S3Server, s3_server

    if SHARED_S3 in os.environ:
        yield S3Server(os.environ[SHARED_S3])
        return
    with s3_server() as server:
        yield server


class Quiet:
    """A display that only counts."""

    def started(self, label: str) -> Any:
        from resprout.tasks.core.job import silent

        return silent

    def waiting(self, stage: str) -> None:
        pass

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        pass


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def make_run(prefect_server: None, mlflow_template: Path) -> Callable[..., Any]:
    """Run a function of a Run inside a Prefect flow, on the store under `home`, and return what it
    returns."""
    import shutil

    from prefect import flow

    from resprout.configs.infrastructure import MlflowConfig, StoreConfig
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.in_use import InUseReferences
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.tasks.core.run import Run

    def start(home: Path, steps: Callable[[Any], Any], store: Any = None, **options: Any) -> Any:
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
            artifacts.in_use = InUseReferences(artifacts.driver, run.locks)
            try:
                with tracker.running(run_id):
                    return steps(run)
            finally:
                artifacts.in_use.close()

        return toy()

    return start
