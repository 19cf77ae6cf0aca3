"""A search: Optuna proposes, results are learnt, a study goes on where it was ended."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import mlflow_of
from resprout.configs.errors import BadInput
from resprout.configs.result import ModelResult, RunResult
from resprout.configs.sweep import Variant, VariantResult, load_sweep
from resprout.flows.search import Search
from resprout.flows.sweep_session import prepared
from tiny_run import write_run

OVER = {"prune.target.params_ratio": {"low": 0.75, "high": 0.95}, "prune.method": ["flap", "magnitude"]}


def write_search(root: Path, **given: Any) -> Path:
    write_run(root, measure=None)
    path = root / "sweep.yaml"
    search = {"optuna": {"trials": 4, "over": OVER, **given}}
    path.write_text(yaml.safe_dump({"name": "front", "base": "run.yaml", "search": search}))
    return path


def search_in(path: Path, home: Path) -> Search:
    overrides = [f"infra.home={home}"]
    return Search(path, overrides, prepared(*load_sweep(path, overrides)))


def proposed(search: Search) -> Variant:
    found = search.propose()
    assert isinstance(found, Variant)
    return found


def scored(variant: Variant, params: int, perplexity: float, status: str = "done") -> VariantResult:
    metrics = {"params": float(params), "words_ppl_seq32": perplexity}
    model = ModelResult(params=params, non_embedding_params=params, bytes=params, metrics=metrics)
    models = {"dense": model, "pruned": model}
    result = RunResult.model_validate({"status": status, "exit_code": 0, "models": models})
    return VariantResult(name=variant.name, settings=variant.settings, result=result)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"objectives": ["params"]}, "'params' is no objective; give a metric and min or max"),
        ({"objectives": ["decode4_tokens_per_s max"]}, "speeds are measured together"),
        ({"objectives": ["params min", "params max"]}, "an objective is given twice"),
        ({"over": {}}, "over"),
        ({"over": {"seed": [1]}}, "at least 2 items"),
        ({"over": {"recover.rank": {"low": 8, "high": 4}}}, "low must be below high"),
        ({"over": {"recover.learning_rate": {"low": 0, "high": 1, "log": True}}}, "log needs a low above 0"),
        ({"over": {"infra.workers": [1, 2]}}, "infra.workers cannot differ between variants"),
        (
            {"over": {"prune.metod": ["flap", "magnitude"]}},
            "search over prune.metod: .*did you mean 'method'",
        ),
        ({"over": {"recover.rank": {"low": -3, "high": 4}}}, "search over recover.rank"),
        ({"sampler": "best"}, "tpe"),
        ({"trails": 3}, "did you mean 'trials'"),
    ],
)
def test_a_search_that_cannot_be_used_is_refused(
    tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        load_sweep(write_search(tmp_path, **given), [])


def test_an_objective_that_the_evaluation_does_not_have_is_refused(tmp_path: Path, home: Path) -> None:
    with pytest.raises(BadInput, match=r"names 'perplexty'.* give one of params, .*perplexity"):
        search_in(write_search(tmp_path, objectives=["perplexty min"]), home)


def test_values_are_drawn_within_their_ranges_and_from_their_lists(tmp_path: Path, home: Path) -> None:
    over = {
        **OVER,
        "recover.rank": {"low": 2, "high": 8, "step": 2},
        "recover.learning_rate": {"low": 1.0e-5, "high": 1.0e-2, "log": True},
        "prune.units": [["ffn"], ["ffn", "kv_groups"]],
    }
    search = search_in(write_search(tmp_path, over=over, trials=20, sampler="random"), home)
    drawn = [proposed(search).settings for _ in range(20)]
    assert {type(one["recover.rank"]) for one in drawn} == {int}
    assert {one["recover.rank"] for one in drawn} <= {2, 4, 6, 8}
    assert all(1.0e-5 <= one["recover.learning_rate"] <= 1.0e-2 for one in drawn)
    assert {str(one["prune.units"]) for one in drawn} == {"['ffn']", "['ffn', 'kv_groups']"}
    assert search.left == 0


def test_the_front_and_the_rivals_follow_from_what_was_learnt(tmp_path: Path, home: Path) -> None:
    search = search_in(write_search(tmp_path), home)
    first, second, third = (proposed(search) for _ in range(3))
    search.learn(scored(first, 100, 20.0))
    search.learn(scored(second, 80, 30.0))
    search.learn(scored(third, 90, 40.0, status="stopped"))
    assert search.front() == [first.name, second.name]
    rivals = search.rivals
    assert rivals is not None
    assert rivals.better({"params": 101.0, "words_ppl_seq32": 20.0}) == first.name
    assert rivals.better({"params": 79.0, "words_ppl_seq32": 50.0}) is None
    states = [trial.state.name for trial in search.study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert search.study.trials[1].values == [80.0, 30.0]


def test_a_maximised_objective_is_told_as_it_is(tmp_path: Path, home: Path) -> None:
    search = search_in(write_search(tmp_path, objectives=["params min", "words_ppl_seq32 max"]), home)
    variant = proposed(search)
    search.learn(scored(variant, 100, 20.0))
    assert search.study.trials[0].values == [100.0, 20.0]
    assert search.points == {variant.name: (100.0, -20.0)}


def test_a_search_goes_on_where_it_was_ended(tmp_path: Path, home: Path) -> None:
    path = write_search(tmp_path)
    search = search_in(path, home)
    finished, lost = proposed(search), proposed(search)
    search.learn(scored(finished, 100, 20.0))

    again = search_in(path, home)
    assert [one.name for one in again.session.result.variants] == [finished.name]
    assert again.front() == [finished.name]
    assert again.left == 3
    repeated = proposed(again)
    assert repeated.settings == lost.settings
    assert repeated.name not in (finished.name, lost.name)

    search.learn(scored(lost, 90, 30.0))
    assert lost.name in search.front(), "it was not ended after all, and counts where it ran"

    other = search_in(write_search(tmp_path, objectives=["params min"]), home)
    assert other.left == 4, "other objectives are another study"


def test_a_variant_that_no_model_fits_is_left_out_and_counts(tmp_path: Path, home: Path) -> None:
    path = write_search(tmp_path, over={"prune.target.params_ratio": {"low": 0.01, "high": 0.011}})
    search = search_in(path, home)
    refused = search.propose()
    assert isinstance(refused, VariantResult)
    assert refused.left_out
    assert "prune.target" in refused.result.message
    search.learn(refused)
    assert search.left == 3
    assert search.front() == []


def test_a_search_from_the_command_line_stops_what_is_dominated_and_goes_on_later(
    tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    home = tmp_path / "home"
    path = write_search(tmp_path, trials=3, sampler="random")
    first = resprout("sweep", path, "--json", home=home)
    assert first.code == 0, first.err
    assert len(first.result["variants"]) == 3
    path = write_search(tmp_path, trials=5, sampler="random")
    found = resprout("sweep", path, "--json", home=home)
    assert found.code == 0, found.err
    variants = found.result["variants"]
    assert variants[:3] == first.result["variants"], "earlier trials are not run again"
    assert len(variants) == 5
    statuses = {one["name"]: one["result"]["status"] for one in variants}
    assert set(statuses.values()) <= {"done", "stopped"}
    assert "done" in statuses.values()
    for one in variants:
        names = [stage["name"] for stage in one["result"]["stages"]]
        assert ("recover" in names) == (one["result"]["status"] == "done")
        if one["result"]["status"] == "stopped":
            assert names[-1] == "evaluate pruned"
            assert "is no worse by any objective and better by one" in one["result"]["message"]
    assert "stopped" in statuses.values(), "of five at random one is dominated; choose another seed"
    assert found.result["front"]
    assert set(found.result["front"]) <= {name for name, status in statuses.items() if status == "done"}
    assert f"front, of variants that no other dominates: {', '.join(found.result['front'])}" in found.err
    whole = mlflow_of(home).get_run(found.result["mlflow_run_id"])
    assert "The front" in whole.data.tags["mlflow.note.content"]
    shown = resprout("sweep", path, "--dry-run", home=home)
    assert shown.code == 0, shown.err


def test_the_search_of_the_page_can_be_used(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    page = (root / "flows" / "README.md").read_text()
    (block,) = (one for one in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "optuna" in one)
    path = tmp_path / "sweep.yaml"
    path.write_text(block.replace("base: ", f"base: {root / 'configs'}/"))
    sweep, _ = load_sweep(path, [])
    assert sweep.search is not None
    assert sweep.search.optuna.trials == 12
