"""The outbox: what was accepted stays until it is handed over; what was started never is again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resprout.configs.infrastructure import RelayConfig
from resprout.infra.relay.delivery import Delivery
from resprout.infra.relay.registry import Version
from resprout.infra.relay.tables import DELIVERIES, MARKS, MODELS, SEEN, STARTS, open_engine

WAITING, HANDLED, FAILED = "waiting", "handled", "failed"


@dataclass(frozen=True)
class Row:
    """A delivery in the outbox; times are seconds since the epoch."""

    id: int
    kind: str
    name: str
    version: str
    received: float
    due: float
    tries: int
    state: str
    reason: str


@dataclass(frozen=True)
class Seen:
    """A version as the registry held it, as text that can be compared; `revision` counts its changes."""

    name: str
    version: str
    created: int
    aliases: str
    tags: str
    revision: int


@dataclass(frozen=True)
class Look:
    """A model when the registry was looked at; `watched` where a rule was for it."""

    name: str
    created: int
    watched: bool


class Outbox:
    """The relay's database; any number of threads and relays may use one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Made once, so that it is compiled once: every delivery goes through it.
        self._keep = self._insert(DELIVERIES).on_conflict_do_nothing()

    @classmethod
    def open(cls, config: RelayConfig, home: Path) -> Outbox:
        """The outbox that `infra.relay` names; BadInput where it cannot be used."""
        return cls(open_engine(config, home))

    def close(self) -> None:
        self.engine.dispose()

    def add(self, deliveries: Iterable[Delivery]) -> list[bool]:
        """Keep deliveries in one commit; for each whether it is new."""
        with self.engine.begin() as connection:
            return [self._add(connection, delivery) for delivery in deliveries]

    def take(self, limit: int, lease_seconds: float) -> list[Row]:
        """The rows that are due, those that were never tried by age; nobody else takes them during the lease.

        A lease saves work only: who hands over a row that another has handed over finds the same flow run.
        """
        now = time.time()
        due = and_(DELIVERIES.c.state == WAITING, DELIVERIES.c.due <= now)
        order = (DELIVERIES.c.due, DELIVERIES.c.id)
        chosen = select(*_columns()).where(due).order_by(*order).limit(limit)
        with self.engine.begin() as connection:
            rows = [Row(*found) for found in connection.execute(chosen.with_for_update(skip_locked=True))]
            if rows:
                self._set(connection, [row.id for row in rows], due=now + lease_seconds)
        return rows

    def finish(self, ids: Sequence[int], state: str, reason: str) -> None:
        """Rows are HANDLED, or FAILED for good."""
        with self.engine.begin() as connection:
            self._set(connection, ids, state=state, reason=reason[:500])

    def later(self, ids: Sequence[int], seconds: float, reason: str) -> None:
        """Rows are due again after a while."""
        with self.engine.begin() as connection:
            due = time.time() + seconds
            self._set(connection, ids, due=due, reason=reason[:500], tries=DELIVERIES.c.tries + 1)

    def retry(self, ids: Sequence[int] | None) -> int:
        """Rows that FAILED, all or those of `ids`, wait again and are due now; how many."""
        chosen = DELIVERIES.c.state == FAILED
        if ids is not None:
            chosen = and_(chosen, DELIVERIES.c.id.in_(ids))
        again = {"state": WAITING, "due": time.time(), "tries": 0, "reason": "it is tried again"}
        with self.engine.begin() as connection:
            return connection.execute(update(DELIVERIES).where(chosen).values(**again)).rowcount

    def release(self, ids: Sequence[int]) -> None:
        """Rows that were taken are due again, in their old order."""
        with self.engine.begin() as connection:
            self._set(connection, ids, due=DELIVERIES.c.received)

    def started(self, rule: str, version: Version) -> list[str]:
        """Ids of the flow runs that a version started by a rule, by attempt."""
        key = and_(*(STARTS.c[name] == value for name, value in _key(rule, version).items()))
        with self.engine.connect() as connection:
            chosen = select(STARTS.c.flow_run_id).where(key).order_by(STARTS.c.attempt)
            return list(connection.execute(chosen).scalars())

    def note_start(self, rule: str, version: Version, flow_run_id: str, attempt: int = 0) -> bool:
        """Keep that a version started a rule; False where another relay noted it first."""
        row = {**_key(rule, version), "attempt": attempt, "flow_run_id": flow_run_id, "at": time.time()}
        with self.engine.begin() as connection:
            put = self._insert(STARTS).values(**row).on_conflict_do_nothing()
            return connection.execute(put).rowcount == 1

    def rows(self, state: str, limit: int = 50) -> list[Row]:
        """The newest rows in a state, of those that wait the oldest."""
        order = DELIVERIES.c.id if state == WAITING else DELIVERIES.c.id.desc()
        chosen = select(*_columns()).where(DELIVERIES.c.state == state).order_by(order).limit(limit)
        with self.engine.connect() as connection:
            return [Row(*found) for found in connection.execute(chosen)]

    def starts(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest flow runs with rule, name and version."""
        with self.engine.connect() as connection:
            found = connection.execute(select(STARTS).order_by(STARTS.c.at.desc()).limit(limit))
            return [dict(row._mapping) for row in found]

    def counts(self) -> tuple[dict[str, int], float | None]:
        """How many rows are in each state, and when the oldest that waits was received."""
        column = DELIVERIES.c.state
        with self.engine.connect() as connection:
            found = connection.execute(select(column, func.count()).group_by(column))
            counts = {state: int(count) for state, count in found}
            oldest = select(func.min(DELIVERIES.c.received)).where(column == WAITING)
            return {**dict.fromkeys((WAITING, HANDLED, FAILED), 0), **counts}, connection.execute(
                oldest
            ).scalar()

    def last_start(self) -> float | None:
        """When the last flow run was created, in seconds since the epoch."""
        with self.engine.connect() as connection:
            return connection.execute(select(func.max(STARTS.c.at))).scalar()

    def prune(self, handled: float, failed: float) -> int:
        """Forget rows that are HANDLED or FAILED and were received before these times; how many."""
        old = or_(
            and_(DELIVERIES.c.state == HANDLED, DELIVERIES.c.received < handled),
            and_(DELIVERIES.c.state == FAILED, DELIVERIES.c.received < failed),
        )
        with self.engine.begin() as connection:
            return connection.execute(delete(DELIVERIES).where(old)).rowcount

    def seen(self) -> dict[tuple[str, str], Seen]:
        """All versions as they were last seen, by name and version."""
        with self.engine.connect() as connection:
            rows = [Seen(*found) for found in connection.execute(select(SEEN))]
        return {(row.name, row.version): row for row in rows}

    def models(self) -> dict[str, Look]:
        """All models as they were last seen, by name."""
        with self.engine.connect() as connection:
            return {found.name: Look(*found) for found in connection.execute(select(MODELS))}

    def marked(self) -> set[str]:
        """What was done once."""
        with self.engine.connect() as connection:
            return set(connection.execute(select(MARKS.c.mark)).scalars())

    def learn(
        self,
        models: Iterable[Look],
        seen: Iterable[Seen],
        deliveries: Iterable[Delivery],
        marks: Iterable[str],
    ) -> int:
        """Keep what a look at the registry showed and the deliveries that follow; how many are new."""
        with self.engine.begin() as connection:
            for look in models:
                self._put(connection, MODELS, asdict(look))
            for one in seen:
                self._put(connection, SEEN, asdict(one))
            for mark in marks:
                put = self._insert(MARKS).values(mark=mark, at=time.time())
                connection.execute(put.on_conflict_do_nothing())
            return sum([self._add(connection, delivery) for delivery in deliveries])

    def _put(self, connection: Connection, table: Table, row: dict[str, Any]) -> None:
        put = self._insert(table).values(**row)
        keys = [column.name for column in table.primary_key]
        connection.execute(put.on_conflict_do_update(index_elements=keys, set_=row))

    def _add(self, connection: Connection, delivery: Delivery) -> bool:
        now = time.time()
        row = {
            "delivery": delivery.id,
            "kind": delivery.kind,
            "name": delivery.name,
            "version": delivery.version,
            "received": now,
            "due": now,
            "tries": 0,
            "state": WAITING,
            "reason": "",
        }
        return connection.execute(self._keep, row).rowcount == 1

    def _set(self, connection: Connection, ids: Sequence[int], **values: Any) -> None:
        # A row that another relay has finished meanwhile stays finished.
        still = and_(DELIVERIES.c.id.in_(ids), DELIVERIES.c.state == WAITING)
        connection.execute(update(DELIVERIES).where(still).values(**values))

    def _insert(self, table: Table) -> Any:
        dialect: Any = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table)


def _key(rule: str, version: Version) -> dict[str, Any]:
    return {"rule": rule, "name": version.name, "version": version.version, "created": version.created}


def _columns() -> list[Any]:
    return [DELIVERIES.c[name] for name in Row.__dataclass_fields__]
