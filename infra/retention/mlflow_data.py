"""Everything that MLflow holds: the rows of its database as JSON lines, and the files beside them.

SQLite and PostgreSQL are read and written alike, ids and all. Files are those of runs, logged models and
traces, wherever they lie.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.exc import SQLAlchemyError

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import InfraConfig, one_line, without_credentials
from resprout.infra.mlflow.errors import mlflow_errors
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.stack.services import mlflow_database, mlflow_url
from resprout.infra.store.stored_json import parse_json

REVISION = "alembic_version"
"""Table with the revision of the schema."""
SEEDED = {REVISION, "workspaces"}
"""Tables that MLflow itself fills."""
PASSING = {"scheduler_leases", "job_locks"}
"""Tables that say which server is at work now."""
FIRST_EXPERIMENT = "Default"
"""The experiment that MLflow makes."""
ROWS = 1000
"""Rows in memory at once."""
FILES, MODELS, TRACES = "mlflow/files/", "mlflow/models/", "mlflow/traces/"
"""Folders of a backup with the files of runs, logged models and traces."""
TRACE_LOCATION = "mlflow.artifactLocation"
"""Tag of a trace that says where its files are."""
READY = 2
"""Status of a logged model whose files are complete."""


class Database:
    """An MLflow database at an SQLAlchemy address."""

    def __init__(self, address: str) -> None:
        self.shown = without_credentials(address)
        try:
            self.engine: Engine = sqlalchemy.create_engine(address)
        except (SQLAlchemyError, ImportError) as error:
            raise BadInput(f"the MLflow database {self.shown} cannot be used ({one_line(error)})") from None

    def dump(self, folder: Path) -> dict[str, int]:
        """Write <table>.jsonl for each table, all at one moment; return the number of rows of each."""
        counts = {}
        with self._open() as connection:
            if self.engine.dialect.name == "sqlite":
                # The driver begins a transaction only with the first write.
                connection.exec_driver_sql("BEGIN")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for table in _tables(connection).sorted_tables:
                if table.name in PASSING:
                    continue
                counts[table.name] = 0
                with (folder / f"{table.name}.jsonl").open("w", encoding="utf-8") as file:
                    query = sqlalchemy.select(table).order_by(*table.primary_key.columns)
                    for row in connection.execution_options(yield_per=ROWS).execute(query).mappings():
                        line = json.dumps(dict(row), sort_keys=True, ensure_ascii=False, default=_plain)
                        file.write(f"{line}\n")
                        counts[table.name] += 1
        return counts

    def revision(self) -> str:
        """Return the revision of the schema."""
        with self._open() as connection:
            tables = _tables(connection)
            if REVISION not in tables.tables:
                raise BadInput(f"{self.shown} is no MLflow database; name the one behind the server")
            return str(connection.execute(sqlalchemy.select(tables.tables[REVISION])).scalar_one())

    def require_empty(self, own: str) -> None:
        """BadInput where someone has used the database; the experiment called `own` may be there, unused."""
        with self._open() as connection:
            tables = _tables(connection).tables
            # Tags of an experiment say no more than that it is there.
            for name in sorted(tables.keys() - SEEDED - PASSING - {"experiment_tags"}):
                query = sqlalchemy.select(sqlalchemy.literal(1)).select_from(tables[name]).limit(1)
                if name == "experiments":
                    query = query.where(tables[name].c.name.not_in([FIRST_EXPERIMENT, own]))
                if connection.execute(query).first() is not None:
                    raise BadInput(
                        f"the MLflow database {self.shown} is not empty ({name}), and a restore would put "
                        "the backup's rows in place of all that it has; restore into a new one"
                    )

    def load(self, folder: Path, moved: Callable[[str], str]) -> None:
        """Replace all rows by those of a dump, in one transaction; texts go through `moved`."""
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
                    rows = _moved_rows(folder, table.name, moved)
                    while batch := list(itertools.islice(rows, ROWS)):
                        connection.execute(sqlalchemy.insert(table), batch)
            if self.engine.dialect.name == "postgresql":
                _continue_sequences(connection, tables)

    def holds(self, folder: Path, scratch: Path, moved: Callable[[str], str]) -> bool:
        """Whether the rows are exactly those that `load` makes of the dump in `folder`."""
        scratch.mkdir()
        self.dump(scratch)
        tables = {path.stem for place in (folder, scratch) for path in place.glob("*.jsonl")}
        return all(
            _sum(folder, table, moved) == _sum(scratch, table, str) for table in tables - {REVISION, *PASSING}
        )

    def move(self, roots: Mapping[str, str]) -> int:
        """Let each address below one of `roots` begin with what that maps to; return how many changed."""
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
        """Close the connections."""
        self.engine.dispose()

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StageFailed(f"the MLflow database {self.shown} failed ({one_line(error)})") from error


def _tables(connection: Connection) -> MetaData:
    found = MetaData()
    found.reflect(connection)
    return found


def rows_of(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in a dump; none where MLflow's schema has no such table."""
    path = folder / f"{table}.jsonl"
    if path.exists():
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield parse_json(line, f"a row of {path.name}")


def _moved_rows(folder: Path, table: str, moved: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    for row in rows_of(folder, table):
        yield {key: _restored(value, moved) for key, value in row.items()}


def _sum(folder: Path, table: str, moved: Callable[[str], str]) -> int:
    """Return a number that depends on every row, and on no order: databases sort texts differently."""
    total = 0
    for row in _moved_rows(folder, table, moved):
        text = json.dumps({key: _alike(value) for key, value in row.items()}, sort_keys=True)
        total += int.from_bytes(hashlib.sha256(text.encode()).digest())
    return total


def _alike(value: Any) -> Any:
    """Return a value in the form that is the same for all databases."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes | datetime.datetime):
        return _plain(value)
    return value


def _continue_sequences(connection: Connection, tables: MetaData) -> None:
    """Let PostgreSQL's sequences continue after the ids that were inserted."""
    for table in tables.sorted_tables:
        for column in table.primary_key.columns:
            named = sqlalchemy.func.pg_get_serial_sequence(table.name, column.name)
            sequence = connection.execute(sqlalchemy.select(named)).scalar()
            if sequence is not None:
                highest = connection.execute(sqlalchemy.select(sqlalchemy.func.max(column))).scalar()
                if highest is not None:
                    # The next number, not the last: MLflow's first experiment is 0, which no sequence holds.
                    continued = sqlalchemy.func.setval(sequence, highest + 1, False)
                    connection.execute(sqlalchemy.select(continued))


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


def database_address(infra: InfraConfig, tracker: Tracker, home: Path) -> str:
    """Return the SQLAlchemy address of MLflow's database.

    Raises:
        BadInput: tracking goes through a server, and nothing says what is behind it.
    """
    if not tracker.is_server:
        return tracker.uri
    own = {mlflow_url(infra), mlflow_url(infra).replace("127.0.0.1", "localhost")}
    if infra.stack.mlflow_database_url is None and tracker.uri.rstrip("/") not in own:
        raise BadInput(
            f"MLflow at {tracker.shown_uri} is a server, whose tables are read from its database: put the "
            "address into an environment variable and write infra.stack.mlflow_database_url: ${ITS_NAME}, or "
            "set RESPROUT_INFRA__STACK__MLFLOW_DATABASE_URL"
        )
    return mlflow_database(infra.stack, home)


@dataclass(frozen=True)
class FileFolder:
    """A folder of files: its key in a backup, where MLflow has it, and a text that changes with its content.

    Where that text is None, files may still be written.
    """

    key: str
    uri: str
    version: str | None


def file_folders(tables: Path) -> Iterator[FileFolder]:
    """Yield all folders that the rows of a dump name, whether or not there are files."""
    for row in rows_of(tables, "runs"):
        ended = row["end_time"]
        yield FileFolder(
            f"{FILES}{row['run_uuid']}", row["artifact_uri"], None if ended is None else str(ended)
        )
    for row in rows_of(tables, "logged_models"):
        ended = str(row["last_updated_timestamp_ms"]) if row["status"] == READY else None
        yield FileFolder(f"{MODELS}{row['model_id']}", row["artifact_location"], ended)
    for row in rows_of(tables, "trace_tags"):
        if row["key"] == TRACE_LOCATION:
            # MLflow writes the file of a trace once, when the trace is over.
            yield FileFolder(f"{TRACES}{row['request_id']}", row["value"], "")


def is_behind_server(uri: str) -> bool:
    """Whether the tracking server decides where the files are."""
    return urlsplit(uri).scheme == "mlflow-artifacts"


@mlflow_errors
def file_sizes(tracker: Tracker, uri: str) -> dict[str, int]:
    """Return path and size of each file of a folder."""
    repository = _repository(tracker, uri)
    found: dict[str, int] = {}
    todo: list[str | None] = [None]
    while todo:
        for one in repository.list_artifacts(todo.pop()):
            if one.is_dir:
                todo.append(one.path)
            else:
                found[one.path] = int(one.file_size or 0)
    return found


@mlflow_errors
def download_files(tracker: Tracker, uri: str, target: Path) -> bool:
    """Copy all files of a folder to the new folder `target`; False where there are none."""
    repository = _repository(tracker, uri)
    if not repository.list_artifacts():
        return False
    target.mkdir(parents=True)
    repository.download_artifacts("", str(target))
    return True


@mlflow_errors
def upload_files(tracker: Tracker, uri: str, folder: Path) -> None:
    """Copy a local folder's files to MLflow's folder."""
    _repository(tracker, uri).log_artifacts(str(folder))


@mlflow_errors
def delete_file(tracker: Tracker, uri: str, path: str) -> None:
    """Delete a file of a folder."""
    _repository(tracker, uri).delete_artifacts(path)


def _repository(tracker: Tracker, uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(tracker.files.here(uri), tracking_uri=tracker.uri)
