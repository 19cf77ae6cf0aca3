"""The services of the stack: command, address, settings, databases and environment of each."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig, StackConfig, one_line, without_credentials
from resprout.configs.load import PREFIX
from resprout.configs.rules import load_rules
from resprout.infra.environment import ARTIFACTS, QUIET
from resprout.infra.identity import install_command
from resprout.infra.prefect.auth import CLIENT, SERVER, auth_string, kept_secret
from resprout.infra.stack.launch import WORKER
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.driver import driver_class

LOOPBACK = "127.0.0.1"
PORTS = {
    "prefect": "infra.stack.prefect_port",
    "mlflow": "infra.stack.mlflow_port",
    "relay": "infra.relay.port",
}
"""Keys of the settings with the port of each service."""
OLDEST = 14
"""PostgreSQL before 14 is no longer maintained."""
SECONDS = 8.0


def prefect_url(infra: InfraConfig) -> str:
    """Return the address of the stack's Prefect server."""
    return f"http://{LOOPBACK}:{infra.stack.prefect_port}"


def mlflow_url(infra: InfraConfig) -> str:
    """Return the address of the stack's MLflow server."""
    return f"http://{LOOPBACK}:{infra.stack.mlflow_port}"


def relay_url(infra: InfraConfig) -> str:
    """Return the address of the relay on this machine."""
    host = LOOPBACK if infra.relay.host in ("0.0.0.0", "::") else infra.relay.host
    return f"http://{host}:{infra.relay.port}"


def in_the_stack(infra: InfraConfig) -> InfraConfig:
    """Return the settings as services and runs see them: servers are the stack's own, paths are absolute.

    Raises:
        BadInput: they name other servers than the stack's, or a relay without its secret.
    """
    _refuse_other("infra.prefect.api_url", infra.prefect.api_url, f"{prefect_url(infra)}/api", "prefect")
    _refuse_other("infra.mlflow.tracking_uri", infra.mlflow.tracking_uri, mlflow_url(infra), "mlflow")
    relay, store = infra.relay, infra.store
    if relay.rules is not None:
        rules = Path(relay.rules).expanduser().absolute()
        if not rules.is_file():
            raise BadInput(
                f"infra.relay.rules: no file {rules}; give the YAML file of rules, or remove the key"
            )
        if relay.webhook_secret is None:
            raise BadInput(
                "infra.relay.rules is set, but infra.relay.webhook_secret is not; put a long random text in "
                "an environment variable and write webhook_secret: ${ITS_NAME}"
            )
        relay = relay.model_copy(update={"rules": str(rules)})
    if store.uri is not None and "://" not in store.uri:
        store = store.model_copy(update={"uri": str(Path(store.uri).expanduser().absolute())})
    prefect = infra.prefect.model_copy(update={"api_url": f"{prefect_url(infra)}/api", "api_key": None})
    mlflow = infra.mlflow.model_copy(update={"tracking_uri": mlflow_url(infra)})
    return infra.model_copy(update={"relay": relay, "store": store, "prefect": prefect, "mlflow": mlflow})


def variables(infra: InfraConfig, home: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings beyond the defaults as RESPROUT_* variables: plain ones, and secrets."""
    plain = {"RESPROUT_HOME": str(home), f"{PREFIX}INFRA__HOME": json.dumps(str(home))}
    secret: dict[str, str] = {}
    for name, value in infra.model_dump(exclude={"home"}, exclude_defaults=True).items():
        for key, given in value.items() if isinstance(value, dict) else [("", value)]:
            variable = "__".join([f"{PREFIX}INFRA", name.upper(), *([key.upper()] if key else [])])
            if not isinstance(given, SecretStr):
                plain[variable] = json.dumps(given)
            elif name != "stack":
                # The databases belong to the servers alone.
                secret[variable] = given.get_secret_value()
    return plain, secret


def _refuse_other(key: str, given: str | None, own: str, service: str) -> None:
    same = {own, own.replace(LOOPBACK, "localhost")}
    if given is not None and given.rstrip("/") not in same:
        raise BadInput(
            f"{key} is {given}, but `resprout up` starts its own at {own}; remove the key, set "
            f"{PORTS[service]} where another port is meant, or do without the stack"
        )


def variable(key: str) -> str:
    """The environment variable of a key of the settings."""
    return PREFIX + key.upper().replace(".", "__")


def prefect_database(stack: StackConfig) -> str | None:
    """Return the SQLAlchemy address of the Prefect server's database; None for its SQLite file."""
    return _with_driver(stack.prefect_database_url, "asyncpg")


def mlflow_database(stack: StackConfig, home: Path) -> str:
    """Return the SQLAlchemy address of MLflow's database, by default the file that single runs use too."""
    return (
        _with_driver(stack.mlflow_database_url, "psycopg2") or f"sqlite:///{(home / 'mlflow.db').resolve()}"
    )


def check_databases(stack: StackConfig) -> None:
    """BadInput where a PostgreSQL database is not there, too old, or given to both servers."""
    given = {
        "infra.stack.prefect_database_url": stack.prefect_database_url,
        "infra.stack.mlflow_database_url": stack.mlflow_database_url,
    }
    addresses = {key: _plain(key, url) for key, url in given.items() if url is not None}
    if len(set(addresses.values())) < len(addresses):
        raise BadInput(
            f"{' and '.join(addresses)} name the same database, where the two servers' tables would break "
            "each other; make a second database"
        )
    if stack.mlflow_database_url is not None and importlib.util.find_spec("psycopg2") is None:
        raise BadInput(
            "infra.stack.mlflow_database_url needs the driver psycopg2, which is not installed; run "
            + install_command("postgresql")
        )
    for key, address in addresses.items():
        version = asyncio.run(_version(key, address))
        if version < OLDEST:
            raise BadInput(
                f"{key}: the server is PostgreSQL {version}; give one of version {OLDEST} or later"
            )


def _plain(key: str, url: SecretStr) -> str:
    address = url.get_secret_value()
    if not re.match(r"^postgres(ql)?(\+\w+)?://", address):
        shown = without_credentials(address).split("://")[0]
        raise BadInput(f"{key} begins with {shown}, but it must be postgresql://user:password@host/database")
    return re.sub(r"^[^:]+", "postgresql", address)


def _with_driver(url: SecretStr | None, driver: str) -> str | None:
    if url is None:
        return None
    return re.sub(r"^postgres(ql)?(\+\w+)?:", f"postgresql+{driver}:", url.get_secret_value())


async def _version(key: str, address: str) -> int:
    import asyncpg

    try:
        connection = await asyncpg.connect(address, timeout=SECONDS)
        try:
            return int(connection.get_server_version().major)
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        what = one_line(error) or type(error).__name__
        raise BadInput(
            f"{key}: the database at {without_credentials(address)} cannot be reached ({what}); start the "
            "server, make the database, or correct the address"
        ) from None


TO_LOOPBACK = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
"""MLflow delivers to a private address without TLS, as the relay's is, only when allowed."""
RULES = "_RESPROUT_RULES"
RUNS = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONSAFEPATH": "1"}
"""Seconds until the worker sees a run; and a run imports nothing from the folder that a deployment names."""


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
    # The key with which MLflow encrypts webhook secrets in its database.
    webhook_key = {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": kept_secret(home / "stack" / "webhook.key", _key)}
    databases = {"MLFLOW_BACKEND_STORE_URI": mlflow_database(infra.stack, home)}
    auth = auth_string(home / "prefect")
    prefect_secrets, client_auth = {SERVER: auth}, {CLIENT: auth}
    if address := prefect_database(infra.stack):
        prefect_secrets["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = address
    relay_secrets = {name for name in secrets if "INFRA__RELAY__" in name}
    everything = {**secrets, **bucket_secrets, **webhook_key, **databases, **prefect_secrets, **client_auth}

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
                sys.executable, "-m", "resprout.infra.prefect.server_process",
                "--host", LOOPBACK, "--port", f"{ports.prefect_port}",
            ),
            {
                **common,
                "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
                **_pages(prefect),
                # Patience with a locked SQLite file; a worker and its runs write at the same time.
                "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
                # A run that is cancelled while its process starts has nobody who ends it. More than the 30 s
                # that a worker gives a process; Prefect's default is 300.
                "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "45",
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
                sys.executable, "-m", "resprout.infra.prefect.worker", "start", "--name", "stack",
                "--type", "process", "--pool", ports.pool, "--limit", f"{ports.run_limit}",
            ),
            {**client, **bucket, **RUNS},
            f"{prefect}/api/work_pools/{ports.pool}/workers/filter",
            after=healthy,
            keeps=(*sorted(set(secrets) - relay_secrets), *bucket_secrets, *client_auth),
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
                keeps=(*secrets, *bucket_secrets, *client_auth),
            )
        )

    return [
        replace(one, without=tuple(sorted(set(everything) - set(one.keeps)))) for one in services
    ], everything


def _rules(path: Path) -> str:
    """Return a hash of the rules and of the run configs that they name: with another the relay restarts."""
    files = [path, *(ready.path for ready in load_rules(path))]
    return sha256_hex(b"".join(sha256_hex(file.read_bytes()).encode() for file in files))


def _pages(prefect: str) -> dict[str, str]:
    """Where Prefect's pages find its API, which they look for on port 4200 otherwise; a user's own stays."""
    given = {"PREFECT_SERVER_UI_API_URL", "PREFECT_UI_API_URL"} & os.environ.keys()
    return {} if given else {"PREFECT_SERVER_UI_API_URL": f"{prefect}/api"}


def _key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _artifacts(infra: InfraConfig, home: Path) -> str:
    """Return where MLflow keeps files of runs: in the bucket of the artifact store, else below home.

    Clients write there themselves, as they do without the stack, so that either way of running finds them.
    """
    uri = infra.store.uri
    if uri is not None and driver_class(uri).remote:
        return f"{uri.rstrip('/')}/mlflow"
    return (home / ARTIFACTS).resolve().as_uri()
