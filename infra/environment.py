"""Set environment variables of MLflow, Prefect and Hugging Face before they are imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig, StoreConfig
from resprout.infra.prefect.auth import CLIENT, auth_for
from resprout.infra.store.driver import driver_class

ARTIFACTS = "mlartifacts"
"""Folder below home where MLflow keeps files of runs."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect gives its embedded server 20 s to start, which a busy machine can exceed.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # How often a run tells a server that it lives, in seconds: infra/prefect/automations.py goes by it.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Else a server's client prints the address of each run that ends, into the output of --json.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # A dead server must be reported within 20 s; MLflow's own defaults keep trying for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


def prepare(infra: InfraConfig, home: Path, debug: bool = False, read_only: bool = False) -> None:
    """Make the home folder and set what Prefect, MLflow and Hugging Face read when they are imported.

    A home that cannot be made or written raises BadInput: Prefect's server would try for minutes before it
    says anything. With `read_only` a home that is there need not be writable.
    """
    if not (read_only and home.is_dir()):
        _make(home)
    set_variables(infra, home, debug)


def set_variables(infra: InfraConfig, home: Path, debug: bool = False) -> None:
    """Set what Prefect, MLflow and Hugging Face read when they are imported.

    A variable that the user has set stays as it is, unless the config names the same thing.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "WARNING" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "true" if infra.prefect.api_url else "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "INFO" if debug else "WARNING")
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(home / "cache" / "datasets"))
    if infra.prefect.api_url:
        os.environ["PREFECT_API_URL"] = infra.prefect.api_url
    if infra.prefect.api_key is not None:
        secret = infra.prefect.api_key.get_secret_value()
        os.environ[CLIENT if ":" in secret else "PREFECT_API_KEY"] = secret
    elif auth := auth_for(os.environ.get("PREFECT_API_URL", ""), home / "prefect"):
        os.environ[CLIENT] = auth
    if infra.mlflow.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = infra.mlflow.username.get_secret_value()
    if infra.mlflow.password is not None:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = infra.mlflow.password.get_secret_value()
    _give_mlflow_the_bucket(infra.store)


def _make(home: Path) -> None:
    """Make the data folder; BadInput where it cannot be made or written."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"the data folder {home} cannot be made ({error.strerror}); set RESPROUT_HOME"
        ) from None
    try:
        with tempfile.NamedTemporaryFile(dir=home, prefix="probe-") as probe:
            probe.write(b"probe")
    except OSError as error:
        raise BadInput(
            f"the data folder {home} cannot be written ({error.strerror}); make it writable with room on its "
            "disk, or set RESPROUT_HOME to another folder"
        ) from None


def _give_mlflow_the_bucket(store: StoreConfig) -> None:
    """MLflow reads and writes its artifacts in the store's bucket through a client of its own."""
    plain, secret = driver_class(store.uri).mlflow_variables(store)
    for name, value in plain.items():
        os.environ.setdefault(name, value)
    if not secret.keys() & os.environ.keys():
        os.environ.update(secret)
