"""Single changes to what a finished run left behind, drawn from the files and the tables as they are found.

Knows nothing of how `verify` looks: files come from the file system, rows from the database's own schema. A
change that no answer of MLflow shows, in a column that it keeps and never serves, is drawn again.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

PASSING = ("locks", "tmp")
"""Folders of the store that say nothing about a run: leases, and files that are being written."""
NO_RUN = (
    "alembic_version",
    "experiments",
    "experiment_tags",
    "registered_models",
    "scheduler_leases",
    "workspaces",
)
"""Tables that hold no row of a run or of a version; a model's own row moves with each version."""


@dataclass
class Change:
    """What was changed, and words of which a finding must name at least one."""

    what: str
    names: tuple[str, ...]


class RedTeam:
    """Draws changes to the home of a finished run; each is undone at the end of its block."""

    def __init__(self, home: Path, seed: str) -> None:
        self.home = home
        self.draw = random.Random(seed)
        self.database = home / "mlflow.db"
        self.unseen = 0
        with sqlite3.connect(self.database) as database:
            self.runs = [run for (run,) in database.execute("select run_uuid from runs order by 1")]
            self.versions = database.execute(
                "select name, version from model_versions order by 1, 2"
            ).fetchall()

    def files(self) -> list[Path]:
        found = [path for path in (self.home / "store").rglob("*") if path.is_file()]
        found = [path for path in found if path.relative_to(self.home / "store").parts[0] not in PASSING]
        return sorted(found + [path for path in (self.home / "mlartifacts").rglob("*") if path.is_file()])

    def tables(self) -> list[str]:
        with sqlite3.connect(self.database) as database:
            names = database.execute(
                "select name from sqlite_master where type = 'table' order by 1"
            ).fetchall()
            return [
                name
                for (name,) in names
                if name not in NO_RUN and database.execute(f"select 1 from {name} limit 1").fetchone()
            ]

    @contextmanager
    def change(self) -> Iterator[Change]:
        """One change of one of three kinds, each as likely."""
        kind = self.draw.choice((self.change_of_bytes, self.change_of_field, self.change_of_row))
        with kind() as made:
            yield made

    @contextmanager
    def change_of_bytes(self) -> Iterator[Change]:
        """A byte flipped, the end cut off, a byte more, the file gone, or another file beside it."""
        # First the kind of file, so that hundreds of small ones do not hide the few that matter.
        kinds: dict[Path, list[Path]] = {}
        for path in self.files():
            kinds.setdefault(path.relative_to(self.home).parents[-3], []).append(path)
        path = self.draw.choice(kinds[self.draw.choice(sorted(kinds))])
        data = path.read_bytes()
        how = self.draw.choice(("flip", "cut", "more", "gone", "beside") if data else ("more", "gone"))
        beside = path.with_name(f"{path.name}.{self.draw.randrange(1000)}")
        # Beside what stands alone another object is no part of the run.
        if how == "beside" and "content" not in path.parts and "mlartifacts" not in path.parts:
            how = "flip"
        with replaced(path):
            if how == "flip":
                at = self.draw.randrange(len(data))
                write(path, data[:at] + bytes([data[at] ^ (1 << self.draw.randrange(8))]) + data[at + 1 :])
            elif how == "cut":
                write(path, data[: self.draw.randrange(len(data))])
            elif how == "more":
                write(path, data + bytes([self.draw.randrange(256)]))
            elif how == "gone":
                path.unlink()
            else:
                beside.write_bytes(b"planted")
            try:
                yield Change(f"{how} {path.relative_to(self.home)}", _words(path.relative_to(self.home)))
            finally:
                if how == "beside":
                    beside.unlink()

    @contextmanager
    def change_of_field(self) -> Iterator[Change]:
        """Another value in one field of a manifest or a record, written as it would be written."""
        folders = (self.home / "store" / "manifests", self.home / "store" / "records")
        path = self.draw.choice(sorted(self.draw.choice(folders).iterdir()))
        data = json.loads(path.read_bytes())
        holder, key = self.draw.choice(list(_leaves(data)))
        holder[key] = self.other(holder[key])
        with replaced(path):
            write(path, json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
            yield Change(f"field {key} of {path.relative_to(self.home)}", (path.stem,))

    @contextmanager
    def change_of_row(self) -> Iterator[Change]:
        """A cell changed, a row gone, or one more like it under another key."""
        before = self.world()
        with self.kept_database():
            while True:
                made = self._row()
                if made is not None and self.world() != before:
                    break
                self.unseen += made is not None
                self.restore_database()
            yield made

    def _row(self) -> Change | None:
        table = self.draw.choice(self.tables())
        with sqlite3.connect(self.database) as database:
            columns = [
                (name, bool(key)) for _, name, _, _, _, key in database.execute(f"pragma table_info({table})")
            ]
            rows = database.execute(f"select rowid, * from {table}").fetchall()
            rowid, *values = self.draw.choice(rows)
            row = dict(zip((name for name, _ in columns), values, strict=True))
            how = self.draw.choice(("change", "delete", "add"))
            name = self.draw.choice([name for name, key in columns if how == "change" or key])
            try:
                if how == "delete":
                    database.execute(f"delete from {table} where rowid = ?", (rowid,))
                elif how == "change":
                    database.execute(
                        f"update {table} set {name} = ? where rowid = ?", (self.other(row[name]), rowid)
                    )
                else:
                    more = {**row, name: self.other(row[name])}
                    marks = ", ".join("?" * len(more))
                    database.execute(
                        f"insert into {table} ({', '.join(more)}) values ({marks})", tuple(more.values())
                    )
            except sqlite3.IntegrityError:
                return None
        words = tuple(str(value) for value in row.values() if isinstance(value, str) and len(value) > 1)
        return Change(f"{how} {table}.{name} of {row}", words)

    def other(self, value: Any) -> Any:
        """Another value of the same kind."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + self.draw.choice((1, 7, 1000))
        if isinstance(value, str) and value:
            at = self.draw.randrange(len(value))
            put = self.draw.choice([one for one in "0123456789abcdef" if one != value[at]])
            return value[:at] + put + value[at + 1 :]
        return "planted"

    def world(self) -> str:
        """All that MLflow's client answers about the runs and versions that there were; more are others'."""
        client = MlflowClient(f"sqlite:///{self.database}", f"sqlite:///{self.database}")
        try:
            said: list[Any] = []
            for run in map(client.get_run, self.runs):
                told = run.to_dictionary()
                # A database gives them in no order that means anything.
                told["inputs"]["dataset_inputs"].sort(key=repr)
                said.append(told)
                for key in sorted(run.data.metrics):
                    history = client.get_metric_history(run.info.run_id, key)
                    said.append([(one.key, one.value, one.timestamp, one.step) for one in history])
                for given in sorted(run.inputs.dataset_inputs, key=repr):
                    said.append((given.dataset.to_dictionary(), [dict(tag) for tag in given.tags]))
            for name, version in self.versions:
                said.append(dict(client.get_model_version(name, str(version))))
                said.append(client.get_model_version_download_uri(name, str(version)))
                said.append({**dict(client.get_registered_model(name)), "latest_versions": None})
                said.append(client.get_registered_model(name).aliases)
        except Exception as error:
            return repr(error)
        return repr(said)

    @contextmanager
    def kept_database(self) -> Iterator[None]:
        self._kept = sqlite3.connect(":memory:")
        with sqlite3.connect(self.database) as database:
            database.backup(self._kept)
        try:
            yield
        finally:
            self.restore_database()
            self._kept.close()

    def restore_database(self) -> None:
        with sqlite3.connect(self.database) as database:
            self._kept.backup(database)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """Whatever happens to the file in the block, it is back afterwards."""
    data, mode = path.read_bytes(), path.stat().st_mode
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)


def write(path: Path, data: bytes) -> None:
    """Write over a file that is read-only against accidents."""
    path.chmod(0o644)
    path.write_bytes(data)


def _words(path: Path) -> tuple[str, ...]:
    """The file's name, and the digests and ids in its path."""
    return (path.name, *(part.partition(".")[0] for part in path.parts if len(part) >= 32))


def _leaves(data: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        if isinstance(value, dict | list):
            yield from _leaves(value)
        else:
            yield data, key
