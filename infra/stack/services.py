"""The services of the stack: the command, address and environment of each."""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from resprout.configs.infrastructure import InfraConfig
from resprout.configs.rules import load_rules
from resprout.infra.environment import ARTIFACTS, QUIET
from resprout.infra.stack.launch import WORKER
from resprout.infra.stack.settings import (
    LOOPBACK,
    in_the_stack,
    mlflow_database,
    mlflow_url,
    prefect_database,
    prefect_url,
    relay_url,
    variables,
)
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import driver_class

TO_LOOPBACK = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
"""MLflow delivers to a private address without TLS, as the relay's is, only when allowed."""
RULES = "_RESPROUT_RULES"
RUNS = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
"""Seconds until the worker sees a run."""


@dataclass(frozen=True)
class Service:
    """A process that the supervisor starts; everything here is written to a JSON file for `launch`."""

    name: str
    title: str
    command: tuple[str, ...]
    environment: dict[str, str]
    health: str
    """Address that answers 200 once the service works; for the worker Prefect's list of workers."""
    url: str = ""
    port: int | None = None
    after: tuple[str, ...] = ()
    """Addresses that must answer before the service starts."""
    without: tuple[str, ...] = ()
    """Variables with secrets of other services."""
    keeps: tuple[str, ...] = ()
    """Variables with its own secrets."""
    pool: str = ""
    """The worker's pool."""

    def text(self) -> str:
        """Return the service as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def build_services(
    infra: InfraConfig, home: Path, relay: tuple[str, ...]
) -> tuple[list[Service], dict[str, str]]:
    """Return the services in the order in which they start, and all secrets as variables.

    `relay` is the command of the webhook relay, which runs where there are rules.
    """
    inside = in_the_stack(infra)
    settings, secrets = variables(inside, home)
    bucket, bucket_secrets = driver_class(infra.store.uri).mlflow_variables(infra.store)
    webhook_key = {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": _kept_key(home / "stack" / "webhook.key")}
    databases = {"MLFLOW_BACKEND_STORE_URI": mlflow_database(infra.stack, home)}
    prefect_secrets = {}
    if address := prefect_database(infra.stack):
        prefect_secrets["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = address
    relay_secrets = {name for name in secrets if "INFRA__RELAY__" in name}
    everything = {**secrets, **bucket_secrets, **webhook_key, **databases, **prefect_secrets}

    prefect, mlflow = prefect_url(infra), mlflow_url(infra)
    healthy = (f"{prefect}/api/health", f"{mlflow}/health")
    common = {**QUIET, "PYTHONUNBUFFERED": "1", "PREFECT_HOME": str(home / "prefect")}
    client = {**common, **settings, "PREFECT_API_URL": f"{prefect}/api"}
    ports = infra.stack
    hosts = [f"{host}:{ports.mlflow_port}" for host in (LOOPBACK, "localhost")]
    services = [
        Service(
            "prefect",
            "Prefect server",
            (
                sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK,
                "--port", f"{ports.prefect_port}",
            ),
            {
                **common,
                "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
                # Patience with a locked SQLite file; a worker and its runs write at the same time.
                "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
            },
            healthy[0],
            url=prefect,
            port=ports.prefect_port,
            keeps=tuple(prefect_secrets),
        ),
        Service(
            "mlflow",
            "MLflow server",
            (
                sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK,
                "--port", f"{ports.mlflow_port}", "--workers", "1", "--no-serve-artifacts",
                "--default-artifact-root", _artifacts(infra, home),
                # One line a request would push everything else out of the log.
                "--uvicorn-opts", "--log-level=warning",
            ),
            {
                **common,
                **bucket,
                "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                **(TO_LOOPBACK if infra.relay.rules else {}),
            },
            healthy[1],
            url=mlflow,
            port=ports.mlflow_port,
            keeps=(*databases, *webhook_key, *bucket_secrets),
        ),
        Service(
            WORKER,
            "Prefect worker",
            (
                sys.executable, "-m", "prefect", "worker", "start", "--name", "stack", "--type", "process",
                "--pool", ports.pool, "--limit", f"{ports.run_limit}",
            ),
            {**client, **bucket, **RUNS},
            f"{prefect}/api/work_pools/{ports.pool}/workers/filter",
            after=healthy,
            keeps=(*sorted(set(secrets) - relay_secrets), *bucket_secrets),
            pool=ports.pool,
        ),
    ]  # fmt: skip
    if inside.relay.rules is not None:
        url = relay_url(infra)
        services.append(
            Service(
                "relay",
                "webhook relay",
                relay,
                {**client, **bucket, RULES: _rules(Path(inside.relay.rules))},
                f"{url}/health",
                url=url,
                port=infra.relay.port,
                after=healthy,
                keeps=(*secrets, *bucket_secrets),
            )
        )

    return [
        replace(one, without=tuple(sorted(set(everything) - set(one.keeps)))) for one in services
    ], everything


def _rules(path: Path) -> str:
    """Return a hash of the rules and of the run configs that they name: with another the relay restarts."""
    files = [path, *(ready.path for ready in load_rules(path))]
    return sha256_hex(b"".join(sha256_hex(file.read_bytes()).encode() for file in files))


def _artifacts(infra: InfraConfig, home: Path) -> str:
    """Return where MLflow keeps files of runs: in the bucket of the artifact store, else below home.

    Clients write there themselves, as they do without the stack, so that either way of running finds them.
    """
    uri = infra.store.uri
    if uri is not None and driver_class(uri).remote:
        return f"{uri.rstrip('/')}/mlflow"
    return (home / ARTIFACTS).resolve().as_uri()


def _kept_key(path: Path) -> str:
    """Return the key with which MLflow encrypts webhook secrets in its database; made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.urlsafe_b64encode(os.urandom(32)))
    return path.read_text()
