"""All rows of MLflow's tables, from SQLite to PostgreSQL and back, and the files of runs through a server."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.retention import mlflow_data
from resprout.infra.retention.mlflow_data import Database


@pytest.fixture
def address(mlflow_template: Path, tmp_path: Path) -> str:
    """A SQLite database with a run and a version that touch awkward values."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    tags = {"where": "file:///old/store/content/x", "text": "\u00e4\u2028\n\"'"}
    run = client.create_run("0", tags=tags).info.run_id
    for value in (1.5, 1e-300, math.nan, math.inf):
        client.log_batch(run, metrics=[Metric("loss", value, 1, 0), Metric(f"m{value}", value, 1, 7)])
    client.log_param(run, "p", "x" * 5000)
    client.create_registered_model("m", description="d")
    client.create_model_version("m", "file:///old/store/content/x/hf", run)
    client.set_registered_model_alias("m", "champion", "1")
    return address


def dumped(address: str, folder: Path) -> dict[str, list[Any]]:
    folder.mkdir()
    database = Database(address)
    counts = database.dump(folder)
    database.close()
    found = {path.stem: [json.loads(line) for line in path.open()] for path in sorted(folder.glob("*.jsonl"))}
    assert {name: len(rows) for name, rows in found.items()} == counts
    return found


def as_it_is(text: str) -> str:
    return text


def test_rows_come_back_with_the_new_places(address: str, mlflow_template: Path, tmp_path: Path) -> None:
    before = dumped(address, tmp_path / "before")
    shutil.copy(mlflow_template, tmp_path / "new.db")
    database = Database(f"sqlite:///{tmp_path / 'new.db'}")
    database.require_empty("template")
    database.load(tmp_path / "before", lambda text: text.replace("file:///old", "file:///new"))
    after = dumped(f"sqlite:///{tmp_path / 'new.db'}", tmp_path / "after")
    assert json.dumps(after) == json.dumps(before).replace("file:///old", "file:///new")
    with pytest.raises(BadInput, match="is not empty"):
        database.require_empty("template")
    client = MlflowClient(tracking_uri=str(database.engine.url), registry_uri=str(database.engine.url))
    assert client.get_model_version_by_alias("m", "champion").source == "file:///new/store/content/x/hf"


def test_a_table_that_the_target_lacks_is_named(address: str, mlflow_template: Path, tmp_path: Path) -> None:
    dumped(address, tmp_path / "before")
    (tmp_path / "before" / "strange.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"has tables that .* lacks: strange"):
        Database(f"sqlite:///{mlflow_template}").load(tmp_path / "before", as_it_is)


def test_what_is_no_mlflow_database_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no MLflow database"):
        Database(f"sqlite:///{tmp_path / 'x.db'}").revision()


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("experiments", "insert into experiments (name, workspace) values ('mine', 'default')"),
        ("trace_info", "insert into trace_info values ('tr-1', 1, 1, 1, 'OK', {})"),
        ("tags", "insert into tags values ('k', 'v', 'run')"),
        ("scorers", "insert into scorers (experiment_id, scorer_name, scorer_id) values (1, 'a', 'b')"),
    ],
)
def test_one_row_of_any_table_is_use(
    table: str, statement: str, mlflow_template: Path, tmp_path: Path
) -> None:
    shutil.copy(mlflow_template, tmp_path / "used.db")
    address = f"sqlite:///{tmp_path / 'used.db'}"
    MlflowClient(address, address).create_experiment("template")
    database = Database(address)
    with pytest.raises(BadInput, match=r"is not empty \(experiments\)"):
        database.require_empty("another")
    database.require_empty("template")
    with sqlite3.connect(tmp_path / "used.db") as connection:
        width = len(connection.execute("select * from trace_info").description)
        connection.execute(statement.format(", ".join(["NULL"] * (width - 5)).replace("NULL", "0")))
    with pytest.raises(BadInput, match=rf"is not empty \({table}\)"):
        database.require_empty("template")


def test_a_schema_without_some_tables_is_empty(mlflow_template: Path, tmp_path: Path) -> None:
    shutil.copy(mlflow_template, tmp_path / "other.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("drop table metrics")
    Database(f"sqlite:///{tmp_path / 'other.db'}").require_empty("template")


@pytest.mark.faults
def test_to_postgresql_and_back(address: str, mlflow_template: Path, tmp_path: Path) -> None:
    from servers import postgres_server

    before = dumped(address, tmp_path / "before")
    with postgres_server() as server:
        there = server.url("postgres", "psycopg2")
        client = MlflowClient(tracking_uri=there, registry_uri=there)
        client.search_experiments()
        database = Database(there)
        database.require_empty("template")
        assert database.revision() == Database(address).revision()
        database.load(tmp_path / "before", as_it_is)
        assert database.holds(tmp_path / "before", tmp_path / "held", as_it_is)
        dumped(there, tmp_path / "moved")
        # The next experiment takes the next number.
        highest = max(row["experiment_id"] for row in before["experiments"])
        assert client.create_experiment("next") == str(highest + 1)
        database.close()
    shutil.copy(mlflow_template, tmp_path / "back.db")
    Database(f"sqlite:///{tmp_path / 'back.db'}").load(tmp_path / "moved", as_it_is)
    after = dumped(f"sqlite:///{tmp_path / 'back.db'}", tmp_path / "after")
    for name, rows in before.items():
        assert sorted(map(json.dumps, after[name])) == sorted(map(json.dumps, rows)), name


@pytest.mark.faults
def test_files_of_runs_through_a_server(tmp_path: Path) -> None:
    from servers import free_port, mlflow_server

    with mlflow_server(tmp_path / "server", free_port()) as server:
        tracker = Tracker(MlflowConfig(tracking_uri=server.uri), tmp_path)
        tracker.connect()
        run = tracker.start("x", {})
        where = tracker.run(run).info.artifact_uri
        assert where.startswith("mlflow-artifacts:")
        assert not mlflow_data.download_files(tracker, where, tmp_path / "none")
        (tmp_path / "made" / "sub").mkdir(parents=True)
        (tmp_path / "made" / "a.txt").write_text("a")
        (tmp_path / "made" / "sub" / "b.txt").write_text("b")
        mlflow_data.upload_files(tracker, where, tmp_path / "made")
        assert mlflow_data.download_files(tracker, where, tmp_path / "here")
        assert (tmp_path / "here" / "sub" / "b.txt").read_text() == "b"
        mlflow_data.delete_file(tracker, where, "sub/b.txt")
        assert mlflow_data.download_files(tracker, where, tmp_path / "again")
        assert [path.name for path in (tmp_path / "again").rglob("*") if path.is_file()] == ["a.txt"]
