"""What stands in the place of MLflow's database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput
from resprout.infra.mlflow.errors import require_sqlite


def test_a_database_that_is_new_empty_or_being_written_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a folder %20" / "mlflow.db"
    uri = f"sqlite:///{path}"
    require_sqlite(uri)
    path.parent.mkdir()
    path.touch()
    require_sqlite(uri)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = wal")
        database.execute("CREATE TABLE runs (id)")
        require_sqlite(uri)
        database.execute("PRAGMA journal_mode = delete")
        database.execute("BEGIN EXCLUSIVE")
        require_sqlite(uri)


@pytest.mark.parametrize("damage", [slice(0, 100), slice(100, 200)])
def test_a_database_that_is_none(damage: slice, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE runs (id)")
    data = bytearray(path.read_bytes())
    data[damage] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"mlflow\.db is no SQLite database.*; bring back"):
        require_sqlite(f"sqlite:///{path}")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no SQLite database"):
        require_sqlite(f"sqlite:///{tmp_path}")
