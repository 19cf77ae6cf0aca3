"""A home that was moved or copied: nothing counts as changed or is made twice, and what is changed shows."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from attacks import versions

VERSION = "models:/tiny-pruned/1"


@pytest.fixture
def moved(finished: Any, tmp_path: Path) -> Path:
    """A copy of the finished run's home, as `cp -a` makes it; the home itself is still where it was."""
    shutil.copytree(finished.untouched, tmp_path / "new" / "home", symlinks=True)
    return tmp_path / "new" / "home"


def source(home: Path) -> str:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}")
    return str(client.get_model_version("tiny-pruned", "1").source)


def test_a_moved_home_verifies_runs_into_the_same_version_and_can_be_told_to_mlflow(
    finished: Any, moved: Path, resprout: Callable[..., Any]
) -> None:
    before = versions(moved)
    looked = resprout("verify", VERSION, home=moved)
    assert looked.code == 0, looked.err
    assert f"{VERSION}: MLflow loads it from {finished.home.as_uri()}" in looked.out
    assert "resprout relocate" in looked.out
    everything = resprout("verify", "--all", home=moved)
    assert everything.code == 0, everything.err
    audit = resprout("audit", "--strict", home=moved)
    assert audit.code == 0, audit.err
    again = resprout("run", finished.config, "--json", home=moved)
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.result["stages"])
    assert again.result["registered"] == {"name": "tiny-pruned", "version": "1", "alias": "candidate"}
    assert again.result["exports"][0]["uri"].startswith(moved.as_uri())
    assert versions(moved) == before
    assert resprout("verify", "--all", home=moved).code == 0
    told = resprout("relocate", home=moved)
    assert told.code == 0, told.err
    assert source(moved).startswith(moved.as_uri())
    assert Path(source(moved).removeprefix("file://"), "model.safetensors").is_file()
    after = resprout("verify", "--all", home=moved)
    assert after.code == 0, after.err
    assert "MLflow loads it from" not in after.out
    assert "nothing is to be changed" in resprout("relocate", home=moved).out


def test_what_is_changed_in_a_moved_home_is_found_there_and_named_with_its_version(
    finished: Any, moved: Path, resprout: Callable[..., Any]
) -> None:
    logged = next(path for path in sorted((moved / "mlartifacts").rglob("plan.json")))
    was = logged.read_text()
    logged.write_text(was.replace("1", "2"))
    looked = resprout("verify", "--all", home=moved)
    assert looked.code == 4, "the files of the old home were looked at"
    assert "plan.json" in looked.err
    logged.write_text(was)
    elsewhere = "file:///elsewhere/hf"
    with sqlite3.connect(moved / "mlflow.db") as database:
        database.execute("update model_versions set source = ?, storage_location = ?", (elsewhere, elsewhere))
    looked = resprout("verify", "--all", home=moved)
    assert looked.code == 4
    assert f"{VERSION}: the version's source is {elsewhere}" in looked.err
    audit = resprout("audit", "--json", home=moved)
    assert json.loads(audit.out)["at_odds"] == 1, "what verify finds at odds, the summary counts"


def test_with_another_mlflow_the_address_is_no_business_of_the_home(
    moved: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    env = {"RESPROUT_INFRA__MLFLOW__TRACKING_URI": f"sqlite:///{tmp_path / 'own.db'}"}
    refused = resprout("relocate", home=moved, env=env)
    assert refused.code == 2
    assert "has no call that changes the source of a version" in refused.err
