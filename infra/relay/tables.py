"""The relay's tables, in SQLite or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import RelayConfig, without_credentials
from resprout.infra.extras import install_command

METADATA = MetaData()

DELIVERIES = Table(
    "relay_deliveries",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("delivery", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("received", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("relay_deliveries_due", "state", "due"),
)
"""The outbox: a row waits until every rule that is for it has a flow run."""

STARTS = Table(
    "relay_starts",
    METADATA,
    Column("rule", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("created", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("flow_run_id", Text, nullable=False),
    Column("at", Double, nullable=False),
)
"""Flow runs that were created; kept for good, so that no version starts a rule twice unless somebody says so:
that is the next attempt."""

SEEN = Table(
    "relay_seen",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("created", BigInteger, nullable=False),
    Column("aliases", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("revision", Integer, nullable=False),
)
"""What the registry held when it was last looked at; MLflow dates no change of an alias or tag."""

MODELS = Table(
    "relay_models",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("created", BigInteger, nullable=False),
    Column("watched", Boolean, nullable=False),
)
"""All models of the registry when it was last looked at, and whether any rule was for them."""

MARKS = Table(
    "relay_marks", METADATA, Column("mark", Text, primary_key=True), Column("at", Double, nullable=False)
)
"""What was done once: the first look at a registry, the backfill of a model by a rule."""

LOCK = 0x7265737072
"""Number of PostgreSQL's lock while tables are made."""


def open_engine(config: RelayConfig, home: Path) -> Engine:
    """The database with its tables; BadInput where it cannot be used."""
    if config.database_url is None:
        return _sqlite(home)
    try:
        url = make_url(config.database_url.get_secret_value())
    except (ArgumentError, ValueError):
        # ValueError: a port that is no number.
        url = None
    if url is None or url.get_backend_name() not in ("postgresql", "postgres"):
        raise BadInput(
            "infra.relay.database_url is no PostgreSQL address; give postgresql://user:password@host/name, "
            "or leave it out for SQLite below the data folder"
        )
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg2"),
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"connect_timeout": 5},
        )
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            METADATA.create_all(connection)
    except ImportError:
        raise BadInput(
            "infra.relay.database_url needs psycopg2, which is not installed; run "
            + install_command("postgresql")
        ) from None
    except SQLAlchemyError as error:
        raise BadInput(
            f"the relay's database at {url.host} cannot be used ({said(error)}); start it, or correct "
            "infra.relay.database_url"
        ) from None
    return engine


def _sqlite(home: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{home / 'relay.db'}", connect_args={"timeout": 30}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _: Any) -> None:
        # A committed delivery must outlive a power cut: MLflow has been told that it arrived.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    try:
        with FileLock(str(home / "relay.lock"), timeout=60):
            METADATA.create_all(engine)
    except (SQLAlchemyError, OSError) as error:
        raise BadInput(f"{home / 'relay.db'} cannot be used ({said(error)}); see the data folder") from None
    return engine


def said(error: Exception) -> str:
    """A fault of the database in one line, without statement, values and credentials."""
    words = str(getattr(error, "orig", None) or error).split()
    return without_credentials(" ".join(words))[:200]
