"""All rows of an MLflow database, SQLite and PostgreSQL alike, as JSON lines and back, ids and all."""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData, Table
from sqlalchemy.exc import SQLAlchemyError

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import without_credentials

REVISION = "alembic_version"
"""Table with the revision of the schema."""
SEEDED = {REVISION, "workspaces"}
"""Tables that MLflow itself fills."""
PASSING = {"scheduler_leases", "job_locks"}
"""Tables that say which server is at work now."""
EXPERIMENTS = "experiments"
EXPERIMENT_TAGS = "experiment_tags"
FIRST = "Default"
"""The experiment that MLflow makes."""
ROWS = 1000


class Database:
    """An MLflow database behind an SQLAlchemy address."""

    def __init__(self, address: str) -> None:
        self.shown = without_credentials(address)
        try:
            self.engine: Engine = sqlalchemy.create_engine(address)
        except (SQLAlchemyError, ImportError) as error:
            raise BadInput(f"the MLflow database {self.shown} cannot be used ({_line(error)})") from None

    def dump(self, folder: Path) -> dict[str, int]:
        """Write <table>.jsonl for each table as it is at one moment; the rows of each."""
        counts = {}
        with self._open() as connection:
            self._one_moment(connection)
            for table in _tables(connection).sorted_tables:
                if table.name in PASSING:
                    continue
                counts[table.name] = 0
                with (folder / f"{table.name}.jsonl").open("w", encoding="utf-8") as file:
                    for row in _rows(connection, table):
                        file.write(json.dumps(row, sort_keys=True, ensure_ascii=False, default=_plain) + "\n")
                        counts[table.name] += 1
        return counts

    def revision(self) -> str:
        """Revision of the schema."""
        with self._open() as connection:
            tables = _tables(connection)
            if REVISION not in tables.tables:
                raise BadInput(f"{self.shown} is no MLflow database; name the one behind the server")
            return str(connection.execute(sqlalchemy.select(tables.tables[REVISION])).scalar_one())

    def require_empty(self, own: str) -> None:
        """BadInput where somebody has used the database; the experiment called `own` may be there, unused."""
        with self._open() as connection:
            tables = _tables(connection).tables
            # Tags of an experiment say no more than that it is there.
            for name in sorted(tables.keys() - SEEDED - PASSING - {EXPERIMENT_TAGS}):
                query = sqlalchemy.select(sqlalchemy.literal(1)).select_from(tables[name]).limit(1)
                if name == EXPERIMENTS:
                    query = query.where(tables[name].c.name.not_in([FIRST, own]))
                if connection.execute(query).first() is not None:
                    raise BadInput(
                        f"the MLflow database {self.shown} is not empty ({name}), and a restore would put "
                        "the backup's rows in place of all that it has; restore into a new one"
                    )

    def load(self, folder: Path, moved: Callable[[str], str]) -> None:
        """Put the rows of a dump in place of all there are; texts go through `moved`."""
        with self._open() as connection:
            tables = _tables(connection)
            known = {path.stem for path in folder.glob("*.jsonl")}
            if unknown := known - tables.tables.keys():
                raise BadInput(f"the backup has tables that {self.shown} lacks: {', '.join(sorted(unknown))}")
            for table in reversed(tables.sorted_tables):
                if table.name not in {REVISION, *PASSING}:
                    connection.execute(sqlalchemy.delete(table))
            for table in tables.sorted_tables:
                if table.name in known - {REVISION, *PASSING}:
                    for batch in _read(folder / f"{table.name}.jsonl", moved):
                        connection.execute(sqlalchemy.insert(table), batch)
            if self.engine.dialect.name == "postgresql":
                _go_on_counting(connection, tables)

    def holds(self, folder: Path, scratch: Path, moved: Callable[[str], str]) -> bool:
        """Whether the rows are those that `load` makes of the dump in `folder`, each of them and no other."""
        scratch.mkdir()
        self.dump(scratch)
        names = {path.name for place in (folder, scratch) for path in place.glob("*.jsonl")}
        return all(
            _sum(folder / name, moved) == _sum(scratch / name, str)
            for name in names - {f"{name}.jsonl" for name in {REVISION, *PASSING}}
        )

    def move(self, roots: Mapping[str, str]) -> int:
        """Let each address that lies below one of `roots` begin with what that maps to; how many did."""
        changed = 0
        with self._open() as connection:
            for table in _tables(connection).sorted_tables:
                for column in table.columns:
                    if isinstance(column.type, sqlalchemy.String):
                        for old, new in roots.items():
                            below = sqlalchemy.func.substr(column, 1, len(old) + 1) == f"{old}/"
                            moved = sqlalchemy.literal(new) + sqlalchemy.func.substr(column, len(old) + 1)
                            change = sqlalchemy.update(table).where(below | (column == old))
                            changed += connection.execute(change.values({column.name: moved})).rowcount
        return changed

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StageFailed(f"the MLflow database {self.shown} failed ({_line(error)})") from error

    def _one_moment(self, connection: Connection) -> None:
        if self.engine.dialect.name == "sqlite":
            # The driver begins a transaction only with the first write.
            connection.exec_driver_sql("BEGIN")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _tables(connection: Connection) -> MetaData:
    found = MetaData()
    found.reflect(connection)
    return found


def _rows(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    query = sqlalchemy.select(table).order_by(*table.primary_key.columns)
    for row in connection.execution_options(yield_per=ROWS).execute(query).mappings():
        yield dict(row)


def _read(path: Path, moved: Callable[[str], str]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            batch.append({key: _restored(value, moved) for key, value in json.loads(line).items()})
            if len(batch) == ROWS:
                yield batch
                batch = []
    if batch:
        yield batch


def _sum(path: Path, moved: Callable[[str], str]) -> int:
    """A number that depends on every row, and on no order: databases sort texts differently."""
    total = 0
    if path.exists():
        for batch in _read(path, moved):
            for row in batch:
                text = json.dumps({key: _alike(value) for key, value in row.items()}, sort_keys=True)
                total += int.from_bytes(hashlib.sha256(text.encode()).digest())
    return total


def _alike(value: Any) -> Any:
    """What databases show differently made the same."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes | datetime.datetime):
        return _plain(value)
    return value


def _go_on_counting(connection: Connection, tables: MetaData) -> None:
    """Make PostgreSQL's sequences go on after the ids that were put in."""
    for table in tables.sorted_tables:
        for column in table.primary_key.columns:
            named = sqlalchemy.func.pg_get_serial_sequence(table.name, column.name)
            sequence = connection.execute(sqlalchemy.select(named)).scalar()
            if sequence is not None:
                highest = connection.execute(sqlalchemy.select(sqlalchemy.func.max(column))).scalar()
                if highest is not None:
                    connection.execute(sqlalchemy.select(sqlalchemy.func.setval(sequence, highest)))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return {"$time": value.isoformat()}
    if isinstance(value, decimal.Decimal):
        return {"$decimal": str(value)}
    raise TypeError(f"a column of type {type(value).__name__} is not known here")


def _restored(value: Any, moved: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return moved(value)
    if isinstance(value, dict) and len(value) == 1:
        kind, inside = next(iter(value.items()))
        if kind == "$bytes":
            return base64.b64decode(inside)
        if kind == "$time":
            return datetime.datetime.fromisoformat(inside)
        if kind == "$decimal":
            return decimal.Decimal(inside)
    return value


def _line(error: Exception) -> str:
    return without_credentials(" ".join(str(error).split()))[:200]
