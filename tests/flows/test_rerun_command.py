"""The command and the config that make a run again, without what belongs to one machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import get_client
from prefect.client.schemas.sorting import FlowRunSort

from resprout.configs.load import load
from resprout.flows.rerun_command import command, public_overrides, standalone
from tiny_run import config as tiny_config
from tiny_run import write_run

PASSWORD = "planted-password-31c4"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config()))
    return path


def test_the_command_starts_at_the_root_of_the_project(config: Path) -> None:
    assert command(load(config), [], {}) == "resprout run run.yaml"
    (config.parent.parent / "pyproject.toml").touch()
    assert command(load(config), [], {}) == "resprout run configs/run.yaml"


def test_the_command_is_quoted_and_names_no_server(config: Path) -> None:
    overrides = ["infra.mlflow.tracking_uri=http://me:pw@host", "calibrate.text.0.where=n > 1", "seed=3"]
    environ = {
        "RESPROUT_HOME": "/data",
        "RESPROUT_INFRA__MLFLOW__PASSWORD": PASSWORD,
        "RESPROUT_RECOVER__RANK": "4",
        "RESPROUT_SEED": "2",
    }
    made = command(load(config), overrides, environ)
    assert made == "resprout run run.yaml recover.rank=4 'calibrate.text.0.where=n > 1' seed=3"
    again = shlex.split(made)[3:]
    assert load(config, again, {}).config.public() == {
        **load(config, overrides[1:], environ).config.public(),
        "infra": load(config, [], {}).config.public()["infra"],
    }


def test_all_of_infra_is_left_out() -> None:
    assert public_overrides(["infra={home: /x}", "infra.home=/x", "name=infra", "seed=1"]) == [
        "name=infra",
        "seed=1",
    ]


def test_paths_that_begin_at_the_config_become_absolute(config: Path) -> None:
    (config.parent / "own.yaml").write_text("output_type: multiple_choice\n")
    data = tiny_config()
    data["model"]["source"] = "package://some/file"
    data["evaluate"]["zero_shot"]["tasks"].append({"task": "piqa", "data": {"source": "/there/rows.jsonl"}})
    found = standalone(load(config), data)
    folder = config.parent
    assert found["model"]["source"] == "package://some/file"
    assert found["select"]["pool"][0]["source"] == str(folder / "pool.jsonl")
    own, shipped = found["evaluate"]["zero_shot"]["tasks"]
    assert (own["task"], own["data"]["source"]) == (str(folder / "own.yaml"), str(folder / "task.jsonl"))
    assert (shipped["task"], shipped["data"]["source"]) == ("piqa", "/there/rows.jsonl")


def test_the_printed_command_and_config_find_every_stage(
    resprout: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "pyproject.toml").touch()
    path = write_run(tmp_path / "configs", select=None, recover=None, measure=None)
    home = tmp_path / "home"
    address = f"tcp://someone:{PASSWORD}@localhost:1"
    first = resprout(
        "run", path, "seed=5", "calibrate.samples=6", f"infra.dask_address={address}", "--json",
        home=home, env={"RESPROUT_EXPORT__GREEDY_TOKENS": "5", "RESPROUT_REGISTER__TAGS": "{a: 'b c'}"},
    )  # fmt: skip
    assert first.code == 0, first.err
    reports = Path(first.result["report"]).parent
    line = (reports / "config.yaml").read_text().splitlines()[0].removeprefix("# ")
    assert line in (reports / "report.md").read_text()
    monkeypatch.chdir(tmp_path)
    again = resprout(*shlex.split(line)[1:], "--json", home=home)
    assert again.code == 0, again.err
    assert [stage["name"] for stage in again.result["stages"] if not stage["cached"]] == []
    assert again.result["config_digest"] == first.result["config_digest"]
    monkeypatch.chdir("/")
    valid = resprout("validate", reports / "config.yaml", home=home)
    assert valid.code == 0, valid.err
    planned = resprout("plan", reports / "config.yaml", "--json", home=home)
    assert planned.code == 0, planned.err
    assert [stage["name"] for stage in planned.result["stages"] if not stage["cached"]] == []
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=2)
    assert runs[1].parameters == {
        "config": str(path),
        "overrides": ["seed=5", "calibrate.samples=6"],
        "claim": None,
        "own": False,
    }
    written = {file for file in home.rglob("*") if file.is_file() and PASSWORD.encode() in file.read_bytes()}
    assert written == set()
