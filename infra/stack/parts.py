"""The parts of the stack and what each is told: commands, addresses, environment."""

from __future__ import annotations

import base64
import os
import sys
from dataclasses import replace
from pathlib import Path

from resprout.configs.rules import load_rules
from resprout.configs.schema import InfraConfig
from resprout.infra.environment import ARTIFACTS, QUIET
from resprout.infra.stack.databases import mlflow_database, prefect_database
from resprout.infra.stack.part import WORKER, Part
from resprout.infra.stack.settings import (
    LOOPBACK,
    bucket_variables,
    in_the_stack,
    mlflow_url,
    prefect_url,
    relay_url,
    variables,
)
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import driver_class

TO_LOOPBACK = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
"""MLflow delivers to a private address without TLS, as the relay's is, only when told so."""
RULES = "_RESPROUT_RULES"
RUNS = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
"""How soon the worker sees a run."""


def build(infra: InfraConfig, home: Path, relay: tuple[str, ...]) -> tuple[list[Part], dict[str, str]]:
    """The parts in the order in which they start, and all secrets as variables.

    `relay` is the command of the webhook relay, which runs where there are rules.
    """
    inside = in_the_stack(infra)
    settings, secrets = variables(inside, home)
    bucket, bucket_secrets = bucket_variables(infra)
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
    parts = [
        Part(
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
        Part(
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
        Part(
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
        parts.append(
            Part(
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

    def others(part: Part) -> tuple[str, ...]:
        return tuple(sorted(set(everything) - set(part.keeps)))

    return [replace(part, without=others(part)) for part in parts], everything


def _rules(path: Path) -> str:
    """Changes with the rules and with the run configs that they name: then the relay starts again."""
    files = [path, *(ready.path for ready in load_rules(path))]
    return sha256_hex(b"".join(sha256_hex(file.read_bytes()).encode() for file in files))


def _artifacts(infra: InfraConfig, home: Path) -> str:
    """Where MLflow keeps the small files of runs: in the bucket of the artifact store, else below home.

    Clients write there themselves, as they do without the stack, so that either way of running finds them.
    """
    uri = infra.store.uri
    if uri is not None and driver_class(uri).remote:
        return f"{uri.rstrip('/')}/mlflow"
    return (home / ARTIFACTS).resolve().as_uri()


def _kept_key(path: Path) -> str:
    """The key that MLflow encrypts webhook secrets with in its database, made once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.urlsafe_b64encode(os.urandom(32)))
    return path.read_text()
