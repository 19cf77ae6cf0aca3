"""State of registry triggers: versions and aliases as each rule last saw them, and the runs it started.

One row stands for a rule and a version, and one for the rule and each alias of the version, in SQLite or
PostgreSQL. The registry alone is not enough: MLflow dates no change of an alias or a tag, so it shows only by
comparison which of them happened since the rule is there. Where the table is lost, all that is registered by
then is in the past and starts nothing. Any number of threads and relays may use one database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import RelayConfig, one_line
from resprout.configs.rules import Rule
from resprout.infra.identity import install_command
from resprout.infra.triggers.model_registry import RegisteredModel, RegisteredVersion

PAST, SEEN, WAITING, STARTED, FAILED = "past", "seen", "waiting", "started", "failed"
"""There before the rule was; started nothing, for a reason; could not be started yet; has a flow run; starts
nothing until someone fixes it."""
KEY = ("rule", "name", "version", "created", "alias", "attempt")
MOST_REASON_CHARS = 500
LOCK = 0x7265737072
"""Number of PostgreSQL's lock while tables are made."""

METADATA = MetaData()
RULES = Table(
    "trigger_rules",
    METADATA,
    Column("registry", Text, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("models", Text, nullable=False),
)
"""Patterns of model names that each rule had when all models of a registry were last listed."""
STATES = Table(
    "trigger_states",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("rule", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("alias", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("tags", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("flow_run_id", Text, nullable=False),
    Column("at", Double, nullable=False),
    UniqueConstraint(*KEY),
    Index("trigger_states_name", "name"),
    Index("trigger_states_state", "state", "at"),
)


@dataclass(frozen=True)
class LastSeen:
    """A version, or with `alias` an alias of it, as a rule last saw it, and what the rule did about it.

    `tags` are the version's, as JSON; `attempt` counts what `triggers again` started; `at` is in seconds
    since the epoch. Without a `version` it stands for a model whose versions are all of the past.
    """

    rule: str
    name: str
    version: str
    created: int
    alias: str = ""
    attempt: int = 0
    tags: str = ""
    state: str = SEEN
    reason: str = ""
    flow_run_id: str = ""
    at: float = field(default_factory=time.time, compare=False)
    id: int = field(default=0, compare=False)


def tags_of(version: RegisteredVersion) -> str:
    """The version's tags as `LastSeen` keeps them."""
    return json.dumps(dict(version.tags), sort_keys=True)


class TriggerState:
    """The database of a relay."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        dialect: Any = postgresql if engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert

    @classmethod
    def open(cls, config: RelayConfig, home: Path) -> TriggerState:
        """The database that `infra.relay` names, with its tables; BadInput where it cannot be used."""
        return cls(_open_engine(config, home))

    def close(self) -> None:
        self.engine.dispose()

    def rules(self, registry: str) -> dict[str, tuple[str, ...]]:
        """Patterns of model names by rule, as they were when the registry was last listed."""
        chosen = select(RULES.c.rule, RULES.c.models).where(RULES.c.registry == registry)
        with self.engine.connect() as connection:
            return {rule: tuple(json.loads(models)) for rule, models in connection.execute(chosen)}

    def set_rule(
        self,
        registry: str,
        rule: str,
        before: tuple[str, ...] | None,
        now: tuple[str, ...],
        past: Iterable[RegisteredModel] = (),
    ) -> None:
        """Keep a rule's patterns and the models that are new to it, unless another relay has done so."""
        row = {"registry": registry, "rule": rule, "models": json.dumps(now)}
        chosen = (RULES.c.registry == registry) & (RULES.c.rule == rule)
        marks = [_row(LastSeen(rule, model.name, "", model.created, state=PAST)) for model in past]
        with self.engine.begin() as connection:
            if before is None:
                put: Any = self._insert(RULES).values(**row).on_conflict_do_nothing()
            else:
                put = update(RULES).where(chosen & (RULES.c.models == json.dumps(before))).values(**row)
            if connection.execute(put).rowcount and marks:
                connection.execute(self._put(), marks)

    def entries(self, name: str) -> list[LastSeen]:
        """All that is known of a model."""
        return self._select(STATES.c.name == name)

    def put(self, entries: Sequence[LastSeen]) -> None:
        """Keep entries, over what was kept of the same. What is STARTED stays so."""
        if entries:
            with self.engine.begin() as connection:
                connection.execute(self._put(), [_row(entry) for entry in entries])

    def note_start(self, entry: LastSeen) -> bool:
        """Keep that a run was started; False where another relay noted it first."""
        with self.engine.begin() as connection:
            return connection.execute(self._put(), _row(entry)).rowcount == 1

    def drop(self, entries: Sequence[LastSeen]) -> None:
        """Forget what is not there any more: a mark of the past, an alias that was taken away."""
        ids = [entry.id for entry in entries if entry.state != STARTED]
        if ids:
            with self.engine.begin() as connection:
                # Another relay may have started it since it was read.
                connection.execute(delete(STATES).where(STATES.c.id.in_(ids), STATES.c.state != STARTED))

    def newest(self, state: str, limit: int | None = 50) -> list[LastSeen]:
        """The newest entries in a state, of those that wait the oldest."""
        order = STATES.c.at if state == WAITING else STATES.c.at.desc()
        return self._select(STATES.c.state == state, order, limit)

    def starts(self, rule: str, version: RegisteredVersion, alias: str) -> list[LastSeen]:
        """Runs that a rule started for a version or its alias, by attempt."""
        values = (rule, version.name, version.version, version.created)
        chosen = (STATES.c.state == STARTED) & STATES.c.alias.in_(("", alias))
        for name, value in zip(KEY, values, strict=False):
            chosen &= STATES.c[name] == value
        return self._select(chosen, STATES.c.attempt)

    def retry(self, ids: Sequence[int] | None) -> int:
        """Entries that FAILED, all or those of `ids`, wait again; how many."""
        chosen = STATES.c.state == FAILED
        if ids is not None:
            chosen &= STATES.c.id.in_(ids)
        again = {"state": WAITING, "reason": "it is tried again", "at": time.time()}
        with self.engine.begin() as connection:
            return connection.execute(update(STATES).where(chosen).values(**again)).rowcount

    def forgive(self, before: float) -> None:
        """Entries that FAILED before a time count no more; their versions start nothing all the same."""
        chosen = (STATES.c.state == FAILED) & (STATES.c.at < before)
        with self.engine.begin() as connection:
            connection.execute(update(STATES).where(chosen).values(state=SEEN))

    def counts(self) -> dict[str, int]:
        """How many entries are in each state."""
        chosen = select(STATES.c.state, func.count()).where(STATES.c.version != "").group_by(STATES.c.state)
        with self.engine.connect() as connection:
            found = {state: int(count) for state, count in connection.execute(chosen)}
        return {**dict.fromkeys((WAITING, STARTED, FAILED, SEEN, PAST), 0), **found}

    def import_earlier(self, registry: str, rules: Sequence[Rule]) -> None:
        """Take over what a relay of before these tables kept in the same database, if there was one.

        What it saw is seen, what it started is started for every alias, what waited waits, and a model that
        no rule was for is of the past.
        """
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("relay_marks"):
                return

            def rows(table: str) -> list[dict[str, Any]]:
                return [
                    dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM relay_{table}"))
                ]

            marks = {row["mark"] for row in rows("marks")}
            models, seen, deliveries, starts = map(rows, ("models", "seen", "deliveries", "starts"))
        if f"registry {registry}" not in marks:
            return
        born = {row["name"]: row["created"] for row in models}
        waiting = {
            (row["name"], row["version"], row["kind"]) for row in deliveries if row["state"] == WAITING
        }
        found: dict[tuple[Any, ...], LastSeen] = {}
        for rule in rules:
            for row in (row for row in seen if rule.fits(row["name"])):
                name, version = row["name"], row["version"]
                filled = f"backfill {rule.name} {name} {born.get(name)}" in marks
                waits = any((name, version, kind) in waiting for kind in (*rule.on, "backfill"))
                for alias in ("", *json.loads(row["aliases"])):
                    state = WAITING if waits else SEEN if filled or alias else PAST
                    entry = LastSeen(rule.name, name, version, row["created"], alias, state=state)
                    found[_key(entry)] = replace(entry, tags="" if alias else row["tags"])
        for row in starts:
            entry = LastSeen(**row, state=STARTED)
            found[_key(entry)] = entry
        self.put(list(found.values()))
        for rule in rules:
            past = [row for row in models if rule.fits(row["name"]) and not row["watched"]]
            self.set_rule(
                registry,
                rule.name,
                None,
                rule.models,
                [RegisteredModel(row["name"], row["created"]) for row in past],
            )

    def _select(self, chosen: Any, order: Any = STATES.c.id, limit: int | None = None) -> list[LastSeen]:
        wanted = select(STATES).where(chosen).order_by(order).limit(limit)
        with self.engine.connect() as connection:
            return [LastSeen(**row._mapping) for row in connection.execute(wanted)]

    def _put(self) -> Any:
        put = self._insert(STATES)
        changed = {name: put.excluded[name] for name in ("tags", "state", "reason", "flow_run_id", "at")}
        return put.on_conflict_do_update(
            index_elements=list(KEY), set_=changed, where=STATES.c.state != STARTED
        )


def _key(entry: LastSeen) -> tuple[Any, ...]:
    return tuple(getattr(entry, name) for name in KEY)


def _row(entry: LastSeen) -> dict[str, Any]:
    # No database keeps a NUL or half a surrogate pair, which may stand in a source or a tag.
    reason = "".join(char if char.isprintable() else " " for char in entry.reason)[:MOST_REASON_CHARS]
    row = {**asdict(entry), "reason": reason}
    del row["id"]
    return row


def _open_engine(config: RelayConfig, home: Path) -> Engine:
    if config.database_url is None:
        return _open_sqlite(home)
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
            f"the relay's database at {url.host} cannot be used ({database_fault(error)}); start it, or "
            "correct infra.relay.database_url"
        ) from None
    return engine


def _open_sqlite(home: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{home / 'relay.db'}", connect_args={"timeout": 30}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def use_wal(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")

    try:
        with FileLock(str(home / "relay.lock"), timeout=60):
            METADATA.create_all(engine)
    except (SQLAlchemyError, OSError) as error:
        raise BadInput(
            f"{home / 'relay.db'} cannot be used ({database_fault(error)}); see the data folder"
        ) from None
    return engine


def database_fault(error: Exception) -> str:
    """A fault of the database in one line, without statement, values and credentials."""
    return one_line(getattr(error, "orig", None) or error)
