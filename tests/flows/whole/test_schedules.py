"""Runs whose units go in rounds: what each round leaves, what is found again, what a record makes anew."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_run import write_run

SCHEDULES: dict[str, dict[str, Any]] = {
    "cubic": {"schedule_settings": {"rounds": 3}},
    "mid_training": {"schedule_settings": {"rounds": 2}},
    "soft_shrinkage": {"schedule_settings": {"rounds": 2}},
    "prune_and_regrow": {"schedule_settings": {"rounds": 3}, "criterion": "magnitude"},
}
SELECTION = ["score for selection", "plan for selection", "mask for selection", "select"]
BETWEEN = {
    "cubic": [
        *SELECTION,
        "recover dense",
        *("score round 1", "plan round 1", "mask round 1", "recover round 1"),
        *("score round 2", "plan round 2", "mask round 2", "recover round 2"),
    ],
    "mid_training": [
        *SELECTION,
        "recover dense",
        *("score round 1", "plan round 1", "mask round 1", "recover round 1"),
    ],
    "soft_shrinkage": [
        *SELECTION,
        "recover dense",
        *("score round 1", "plan round 1", "mask round 1", "recover round 1"),
    ],
    "prune_and_regrow": [
        *SELECTION,
        "recover dense",
        *("score round 1", "plan round 1", "score growth round 1", "regrow round 1"),
        *("mask round 1", "recover round 1"),
        *("score round 2", "plan round 2", "score growth round 2", "regrow round 2"),
        *("mask round 2", "recover round 2"),
    ],
}
AFTERWARDS = [
    *("score", "plan", "evaluate dense", "prune", "evaluate pruned", "recover", "evaluate recovered"),
    *("gate", "export", "report"),
]


class Scheduled:
    """A run by a schedule that went through."""

    def __init__(self, name: str, root: Path, resprout: Callable[..., Any]) -> None:
        self.name, self.home = name, root / "home"
        prune = {
            "method": "flap",
            "units": ["ffn"],
            "layout": "uniform",
            "target": {"params_ratio": 0.85},
            "round_to": 8,
            "repair": "none",
            "schedule": name,
            **SCHEDULES[name],
        }
        recover = {"rank": 2, "batch_tokens": 256, "epochs": 2.0, "learning_rate": 1e-2}
        words = {"name": "words", "text": [{"source": "evaluation.jsonl"}], "window_tokens": 32}
        self.config = write_run(
            root, prune=prune, recover=recover, evaluate={"perplexity": words}, measure=None
        )
        self.outcome = resprout("run", self.config, "--json", home=self.home)
        assert self.outcome.code == 0, self.outcome.err
        self.result = self.outcome.result
        self.digests = {one["name"]: one["artifact"]["digest"] for one in self.result["stages"]}

    def folder(self, label: str) -> Path:
        return self.home / "store" / "content" / self.digests[label]

    def json(self, label: str, file: str) -> Any:
        return json.loads((self.folder(label) / file).read_text())

    def ffn(self, label: str) -> list[set[int]]:
        return [set(layer["ffn"]) for layer in self.json(label, "plan.json")["layers"]]


@pytest.fixture(scope="module", params=list(SCHEDULES))
def scheduled(
    request: Any, tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]
) -> Scheduled:
    return Scheduled(request.param, tmp_path_factory.mktemp(request.param), resprout)


def test_each_round_ends_in_an_artifact(scheduled: Scheduled) -> None:
    found = [stage["name"] for stage in scheduled.result["stages"]]
    assert found[found.index("calibrate") + 1 :] == [*BETWEEN[scheduled.name], *AFTERWARDS]
    assert len(set(found)) == len(found)
    assert (scheduled.result["status"], scheduled.result["registered"]["version"]) == ("done", "1")
    card = (scheduled.folder("export") / "hf" / "README.md").read_text()
    assert f"layout uniform, in rounds by schedule {scheduled.name}; then recovery by lora." in card
    report = (scheduled.folder("report") / "report.md").read_text()
    assert f"repair none, schedule {scheduled.name}: asked" in report


def test_sizes_go_down_to_the_target(scheduled: Scheduled) -> None:
    models = scheduled.result["models"]
    target = 0.85 * models["dense"]["params"]
    assert models["pruned"]["params"] == models["recovered"]["params"] <= target
    assert models["pruned"]["params"] > 0.97 * target
    plans = [label for label in scheduled.digests if label.startswith("plan round")] + ["plan"]
    sizes = [scheduled.json(label, "metrics.json")["reached_params"] for label in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == models["pruned"]["params"]
    asked = [scheduled.json(label, "metrics.json")["requested_params"] for label in plans]
    done = {"cubic": [19 / 27, 26 / 27, 1], "mid_training": [7 / 8, 1], "soft_shrinkage": [1, 1]}
    done["prune_and_regrow"] = done["cubic"]
    dense = models["dense"]["params"]
    assert asked == [int(dense * (1 - 0.15 * one)) for one in done[scheduled.name]]


def test_masks_are_told_and_kept_by_training(scheduled: Scheduled) -> None:
    """After a round's training exactly the columns outside its plan are zero; shrunk ones are not."""
    from resprout.tasks.models.load import load_model

    rounds = [label for label in scheduled.digests if label.startswith("mask round")]
    for label in rounds:
        number = label.removeprefix("mask ")
        made_by = f"regrow {number}" if f"regrow {number}" in scheduled.digests else f"plan {number}"
        kept = scheduled.ffn(made_by)
        for folder in (scheduled.folder(label), scheduled.folder(f"recover {number}") / "model"):
            model: Any = load_model(folder, "float32", "cpu")
            for layer, stay in zip(model.model.layers, kept, strict=True):
                zero = (layer.mlp.down_proj.weight == 0).all(dim=0).nonzero().flatten().tolist()
                gone = sorted(set(range(128)) - stay)
                back = scheduled.name == "prune_and_regrow" and folder.name != "model"
                assert set(zero) >= set(gone) if back else zero == gone or scheduled.name == "soft_shrinkage"
                assert zero == [] or scheduled.name != "soft_shrinkage"
        assert (scheduled.folder(label) / "masked.json").exists() == (scheduled.name != "soft_shrinkage")


def test_what_is_gone_stays_gone_or_comes_back_as_the_schedule_says(scheduled: Scheduled) -> None:
    plans = [label for label in scheduled.digests if label.startswith(("plan round", "regrow"))] + ["plan"]
    if scheduled.name in ("cubic", "mid_training"):
        for before, after in itertools.pairwise(plans):
            pairs = zip(scheduled.ffn(before), scheduled.ffn(after), strict=True)
            assert all(new <= old for old, new in pairs)
        first, last = scheduled.ffn(plans[0]), scheduled.ffn(plans[-1])
        assert all(new < old for old, new in zip(first, last, strict=True))
    if scheduled.name == "prune_and_regrow":
        for number, train in ((1, 0.7 / 3), (2, 1.4 / 3)):
            share = 0.5 * (1 + math.cos(math.pi * train)) / 2
            planned, made = scheduled.ffn(f"plan round {number}"), scheduled.ffn(f"regrow round {number}")
            came = scheduled.json(f"regrow round {number}", "metrics.json")["regrown_units"]
            assert came == sum(len(new - old) for old, new in zip(planned, made, strict=True)) > 0
            for old, new in zip(planned, made, strict=True):
                assert len(new) == len(old)
                assert len(new - old) <= share * len(old) + 1


def test_training_is_shared_out(scheduled: Scheduled) -> None:
    """All parts together take the steps of 2 epochs over the budget, each its share to the nearest step."""
    summary = scheduled.json("select", "summary.json")
    whole = math.ceil(2 * summary["requested_tokens"] / 256)
    shares = {
        "cubic": {
            "recover dense": 0.25,
            "recover round 1": 0.25,
            "recover round 2": 0.25,
            "recover": 0.25,
        },
        "mid_training": {"recover dense": 0.5, "recover round 1": 0.25, "recover": 0.25},
        "soft_shrinkage": {"recover dense": 0.375, "recover round 1": 0.375, "recover": 0.25},
        "prune_and_regrow": {
            "recover dense": 0.7 / 3,
            "recover round 1": 0.7 / 3,
            "recover round 2": 0.7 / 3,
            "recover": 0.3,
        },
    }[scheduled.name]
    steps = {label: scheduled.json(label, "metrics.json")["recovery_steps"] for label in shares}
    assert sum(steps.values()) == whole
    for label, share in shares.items():
        assert abs(steps[label] - share * whole) <= 1, label
    report = (scheduled.folder("report") / "report.md").read_text()
    (told,) = re.findall(r"This is of the last (\d+) of (\d+) training steps", report)
    assert tuple(map(int, told)) == (steps["recover"], whole)
    assert len(re.findall(r"\b\d+: \d+\.\d{3}\b", report)) == whole


def test_a_second_run_finds_everything(scheduled: Scheduled, resprout: Callable[..., Any]) -> None:
    again = resprout("run", scheduled.config, "--json", home=scheduled.home)
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.result["stages"])
    found = {one["name"]: one["artifact"]["digest"] for one in again.result["stages"]}
    assert found == scheduled.digests


@pytest.mark.parametrize("scheduled", ["prune_and_regrow"], indirect=True)
def test_a_record_makes_the_run_again(
    scheduled: Scheduled, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    """Of the schedule that has every stage which the others have."""
    reference = "models:/tiny-pruned@candidate"
    found = resprout("reproduce", reference, "--into", tmp_path / "new", "--json", home=scheduled.home)
    assert found.code == 0, found.err
    assert found.result["outcome"] == "identical"
    made = {one["stage"] for one in found.result["stages"]}
    assert made >= {*BETWEEN[scheduled.name], "prune", "recover", "export"}


def test_verify_and_lineage_hold_for_all_rounds(scheduled: Scheduled, resprout: Callable[..., Any]) -> None:
    reference = "models:/tiny-pruned@candidate"
    verified = resprout("verify", reference, home=scheduled.home)
    assert verified.code == 0, verified.err
    found = resprout("lineage", reference, "--json", home=scheduled.home)
    assert found.code == 0, found.err
    stages = [record["stage"] for record in found.result["records"].values()]
    assert stages.count("mask") == sum(one.startswith("mask") for one in BETWEEN[scheduled.name])
    assert stages.count("plan") >= 2


def test_plan_tells_the_rounds_before_anything_runs(tmp_path: Path, resprout: Callable[..., Any]) -> None:
    prune = {"method": "flap", "target": {"params_ratio": 0.85}, "round_to": 8, "schedule": "mid_training"}
    prune |= {"repair": "none", "units": ["ffn"], "layout": "uniform"}
    path = write_run(tmp_path, prune=prune, measure=None)
    found = resprout("plan", path, "--json", home=tmp_path / "home").result
    dense, cut = found["dense"]["params"], found["pruned"]["params"]
    rounds = found["rounds"]
    assert [one["train"] for one in rounds] == pytest.approx([0.375, 0.5, 0.625, 0.75])
    sizes = [one["params"] for one in rounds]
    assert dense > sizes[0] > sizes[1] >= sizes[2] >= sizes[3] == cut
    average = 0.375 * dense + 0.25 * cut + (sizes[0] + sizes[1] + sizes[2]) / 8
    journey = found["journey"]
    assert journey["average_params"] == pytest.approx(average)
    assert journey["one_shot_params"] == cut
    assert journey["loss"] is None
    assert journey["tokens"] is None, "the budget is a share of a pool that was not counted yet"
    text = resprout(
        "plan", path, "select.budget_ratio=null", "select.budget_tokens=400", home=tmp_path / "home"
    )
    assert text.code == 0, text.err
    lines = text.out.splitlines()
    assert f"  round 1 after 38% of training: masked, {sizes[0]:,} parameters stay" in lines
    assert f"  round 4 after 75% of training: cut, {cut:,} parameters stay" in lines
    assert f"average over training: {average:,.0f} parameters (one shot: {cut:,})" in lines
    assert not [line for line in lines if "loss" in line], "400 tokens are far outside the law's range"


def test_a_schedule_that_lives_on_training_is_refused_without_it(
    tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    path = write_run(tmp_path, select=None, recover=None)
    asked = ("prune.schedule=mid_training", "prune.repair=none")
    found = resprout("validate", path, *asked, home=tmp_path / "home")
    assert found.code == 2
    assert "prune.schedule is mid_training, which prunes while the model trains" in found.err
    bare = ("prune.schedule=cubic", "prune.repair=none")
    assert resprout("validate", path, *bare, home=tmp_path / "home").code == 0
    hidden = ("prune.schedule=cubic", "prune.units=[hidden]", "prune.method=minitron_hidden", *asked[1:])
    found = resprout("validate", path, *hidden, home=tmp_path / "home")
    assert found.code == 2
    assert "prune.schedule 'cubic' is not for hidden" in found.err
