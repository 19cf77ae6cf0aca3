"""A ladder in a run: each rung judged and held to the gate, none trained again for other sets or bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import write_run

LADDER = {
    "ladder": ["lora", "full"],
    "budget": {"tokens": 6000},
    "rank": 2,
    "batch_tokens": 512,
    "distill_weight": 0.5,
}


def test_no_rung_is_trained_twice_for_other_figures(resprout: Callable[..., Any], tmp_path: Path) -> None:
    path = write_run(tmp_path, measure=None, recover=LADDER, gate={"max_perplexity_ratio": 0.1})
    home = tmp_path / "home"
    first = resprout("run", path, "--json", home=home)
    assert first.code == 3, first.err
    made = [one["name"] for one in first.result["stages"]]
    rungs = ["recover rung 1", "recover"]
    assert [one for one in made if one.startswith("recover")] == rungs
    assert {"gate before rung 1", "evaluate rung 1 lora", "gate before rung 2"} <= set(made)
    digests = {one["name"]: one["artifact"]["digest"] for one in first.result["stages"]}
    figures = ["evaluate.perplexity.limit_tokens=256", "evaluate.zero_shot=null"]
    again = resprout("run", path, "gate.max_perplexity_ratio=0.2", *figures, "--json", home=home)
    assert again.code == 3, again.err
    stages = {one["name"]: one for one in again.result["stages"]}
    assert [stages[name]["cached"] for name in ("evaluate rung 1 lora", "gate before rung 2")] == [False] * 2
    assert [stages[name]["cached"] for name in rungs] == [True, True]
    assert {name: stages[name]["artifact"]["digest"] for name in rungs} == {
        name: digests[name] for name in rungs
    }


def test_a_gate_that_is_met_ends_the_climb(resprout: Callable[..., Any], tmp_path: Path) -> None:
    """The rungs hand the model on as it is, and the run says why they were skipped."""
    path = write_run(tmp_path, measure=None, recover=LADDER)
    home = tmp_path / "home"
    done = resprout("run", path, "--json", home=home)
    assert done.code == 0, done.err
    stages = {one["name"]: one["artifact"]["digest"] for one in done.result["stages"]}
    store = Path(done.result["exports"][0]["uri"].removeprefix("file://")).parents[1]
    climbed = json.loads((store / stages["recover"] / "ladder.json").read_text())
    assert [one["skipped"] for one in climbed] == ["the gate is met"] * 2
    assert "the gate is met" in done.err
    again = resprout("reproduce", stages["export"], "--into", tmp_path / "again", "--json", home=home)
    assert again.code == 0, again.err
    assert again.result["outcome"] == "identical"
