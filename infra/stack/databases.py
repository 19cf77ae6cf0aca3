"""The databases below the stack's servers: that they answer, and how each server is told of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path

from pydantic import SecretStr

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StackConfig, without_credentials
from resprout.infra.extras import install_command

OLDEST = 14
"""PostgreSQL before 14 is no longer maintained."""
SECONDS = 8.0


def prefect_database(stack: StackConfig) -> str | None:
    """SQLAlchemy address of the Prefect server's database; None for its SQLite file."""
    return _with_driver(stack.prefect_database_url, "asyncpg")


def mlflow_database(stack: StackConfig, home: Path) -> str:
    """SQLAlchemy address of the MLflow server's database, by default the file that single runs use too."""
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
        what = without_credentials(" ".join(str(error).split()))[:200] or type(error).__name__
        raise BadInput(
            f"{key}: the database at {without_credentials(address)} cannot be reached ({what}); start the "
            "server, make the database, or correct the address"
        ) from None
