"""`resprout why`: whether a stage of a run was found or ran, and what differed from the nearest record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import mlflow_of

PARENT = "tags.`mlflow.parentRunId` = '{}'"


@pytest.fixture(scope="module")
def second(finished: Any, resprout: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Home and run of a second run, for which the plan had another target; and the forecast of it."""
    import shutil

    home = tmp_path_factory.mktemp("second") / "home"
    shutil.copytree(finished.untouched, home)
    changes = ("prune.target.params_ratio=0.8", "recover.rank=3", "register=null", "gate=null")
    planned = resprout("plan", finished.config, *changes, "--json", home=home).result
    done = resprout("run", finished.config, *changes, "--json", home=home)
    assert done.code == 0, done.err
    return home, done.result["mlflow_run_id"], {one["name"]: one for one in planned["stages"]}


def test_a_stage_that_ran_names_the_nearest_record_and_where_the_difference_began(
    second: Any, finished: Any, resprout: Callable[..., Any]
) -> None:
    home, run, planned = second
    found = resprout("why", run, "plan", "--json", home=home).result
    assert (found["found"], found["run"], found["stage"]) == (False, run, "plan")
    assert [one["words"] for one in found["differences"]] == planned["plan"]["reasons"]
    assert found["nearest"]["run"] == finished.result["mlflow_run_id"]
    assert found["nearest"]["record"] == planned["plan"]["nearest_record"]
    assert found["causes"] == []
    found = resprout("why", run, "recover", "--json", home=home).result
    parts = [one["part"] for one in found["differences"]]
    assert parts == ["recover.rank", "input plan", "input pruned", "input selection"]
    began = {(one["stage"], one["part"]) for one in found["causes"]}
    assert ("plan", "prune.target.params_ratio") in began
    shown = resprout("why", run, "evaluate pruned", home=home).out
    assert f"nearest earlier record by run {finished.result['mlflow_run_id']}: " in shown
    assert "  prune.target.params_ratio 0.85 -> 0.8 (plan, prune)\n" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_stage_that_was_found_names_the_run_that_made_it(
    second: Any, finished: Any, resprout: Callable[..., Any]
) -> None:
    home, run, planned = second
    assert planned["score"]["cached"]
    client = mlflow_of(home)
    nested = client.search_runs([client.get_run(run).info.experiment_id], PARENT.format(run))
    (stage,) = (one for one in nested if one.info.run_name == "score")
    for reference in (run, stage.info.run_id):
        found = resprout("why", reference, "score", "--json", home=home).result
        assert (found["found"], found["run"]) == (True, run)
        assert found["made_by_run"] == finished.result["mlflow_run_id"]
        assert (found["nearest"], found["differences"]) == (None, [])


def test_the_first_run_had_no_earlier_record(second: Any, resprout: Callable[..., Any]) -> None:
    shown = resprout("why", "models:/tiny-pruned@candidate", "recover", home=second[0])
    assert shown.code == 0, shown.err
    assert "no earlier record of this stage is in the store: this was its first run there" in shown.out
    # A registered model alone is its newest version.
    assert resprout("why", "tiny-pruned", "recover", home=second[0]).out == shown.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("{run}", "recovr"), "has no stage 'recovr'; did you mean 'recover'"),
        (("{run}", "xyz"), "has no stage 'xyz'; give one of acquire calibration text, "),
        (("models:/tiny-pruned/77", "recover"), "no model version models:/tiny-pruned/77"),
        (("0" * 32, "recover"), "no run 0000"),
        (("quickstart", "recover"), "'quickstart' is no reference"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(
    second: Any, resprout: Callable[..., Any], arguments: tuple[str, str], sentence: str
) -> None:
    home, run, _ = second
    shown = resprout("why", *(one.format(run=run) for one in arguments), home=home)
    assert shown.code == 2
    assert sentence in shown.err
    assert home.joinpath("store").is_dir()


def test_nothing_is_written_by_a_look(second: Any, resprout: Callable[..., Any]) -> None:
    home, run, _ = second
    before = files(home / "store")
    assert resprout("why", run, "prune", home=home).code == 0
    assert files(home / "store") == before


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
