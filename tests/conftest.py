"""Fixtures of the whole suite: quiet libraries, one Prefect server for the session, tiny models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers import S3Server

# Set before any test module imports the libraries that read these.
os.environ.update(
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
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


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server on a database of its own for all tests that run flows."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests that need one; they keep apart by prefixes."""
    from servers import s3_server

    with s3_server() as server:
        yield server
