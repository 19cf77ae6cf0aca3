"""Settings of the stack: addresses of its servers, their databases, and the variables that carry settings."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path

from pydantic import SecretStr

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig, StackConfig, one_line, without_credentials
from resprout.configs.load import PREFIX
from resprout.infra.identity import install_command

LOOPBACK = "127.0.0.1"
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
    _refuse_other("infra.prefect.api_url", infra.prefect.api_url, f"{prefect_url(infra)}/api")
    _refuse_other("infra.mlflow.tracking_uri", infra.mlflow.tracking_uri, mlflow_url(infra))
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


def _refuse_other(key: str, given: str | None, own: str) -> None:
    same = {own, own.replace(LOOPBACK, "localhost")}
    if given is not None and given.rstrip("/") not in same:
        raise BadInput(
            f"{key} is {given}, but `resprout up` starts its own at {own}; remove the key, or do without the "
            "stack"
        )


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
