from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.utils.validation import _validate_param_name
from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.load import load
from resprout.configs.schema import BudgetConfig, RecoverConfig, RunConfig, Rung
from resprout.flows.check import check
from resprout.flows.stages import Steps
from resprout.tasks.core.job import Job, silent
from resprout.tasks.recover import ladder, training
from resprout.tasks.recover.ladder import Climbed, budget_of, read, rungs, write
from resprout.tasks.recover.stage import recover
from tiny_run import config as tiny
from tiny_run import write_run

Write = Callable[..., Path]


def section(**changes: Any) -> RecoverConfig:
    return RecoverConfig(**{"ladder": "auto", "budget": {"tokens": 7000}, "batch_tokens": 300, **changes})


def test_rungs_share_the_budget_in_parts_that_triple() -> None:
    found = rungs(section(budget={"tokens": 13_000}), gated=True)
    assert [one.method for one in found] == ["distill"] * 3
    assert [round(13 * one.share) for one in found] == [1, 3, 9]
    assert all(one.distill_weight == 1.0 for one in found)
    assert [budget_of(one, []).tokens for one in found] == [1000, 4000, 13000]
    # Less of the first part was used than it might have been: the second has that too.
    before = [Climbed("distill", tokens=400)]
    assert budget_of(found[1], before).tokens == 3600
    assert budget_of(found[2], [*before, Climbed("distill", tokens=3600)]).tokens == 9000


def test_without_a_gate_there_is_nothing_to_stop_for() -> None:
    (only,) = rungs(section(), gated=False)
    assert (only.method, only.share) == ("distill", 1.0)
    named = rungs(section(ladder=["lora", "distill"]), gated=False)
    assert [(one.method, one.distill_weight) for one in named] == [("lora", 0.0), ("distill", 1.0)]


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        ({"seconds": 1800}, 1800),
        ({"money": 3, "money_per_hour": 2}, 5400),
        ({"money": 3, "money_per_hour": 2, "seconds": 60}, 60),
        ({"tokens": 5}, None),
    ],
)
def test_budgets_by_hand(budget: dict[str, Any], seconds: float | None) -> None:
    assert BudgetConfig(**budget).limit_seconds == seconds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": None}, "ladder needs recover.budget"),
        ({"budget": {}}, "recover.budget is empty"),
        ({"budget": {"money": 5}}, "money and money_per_hour together"),
        ({"budget": {"tokens": 5}, "tokens": 5}, "both say how long"),
        (
            {"budget": {"seconds": 5}, "method": "distill", "distill": {"teacher": "disk"}},
            "must know how many",
        ),
        ({"method": "distill", "distill_weight": 0}, "distill_weight is 0"),
    ],
)
def test_what_says_too_little_or_too_much(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section(**changes)


@pytest.fixture
def climb(tmp_path: Path, models_folder: Path, write_selection: Write) -> Callable[..., Path]:
    def call(name: str, rung: Rung, before: Path | None = None, passed: bool = False) -> Path:
        workdir = tmp_path / name
        workdir.mkdir()
        inputs = {role: models_folder / role for role in ("pruned", "dense")}
        inputs["selection"] = write_selection(count=40)
        if before is not None:
            inputs |= {"before": before, "pruned": before / "model"}
        inputs["verdict"] = tmp_path / f"{name}-verdict"
        inputs["verdict"].mkdir()
        (inputs["verdict"] / "gate.json").write_text(json.dumps({"passed": passed}))
        recover.body(Job(rung, dtype="float32"), inputs, workdir, silent)
        return workdir

    return call


def test_it_climbs_until_the_gate_is_met(climb: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rung goes on where the one before ended, on other rows; behind the gate the model is handed on."""
    monkeypatch.setattr(ladder, "PAYS", 0.0)
    given = section(learning_rate=5e-3, held_out_ratio=0.2, budget={"tokens": 28_000})
    one, two, three = rungs(given, gated=True)
    first = climb("first", one)
    second = climb("second", two, before=first)
    third = climb("third", three, before=second, passed=True)
    climbed = read(third)
    assert [round(each.tokens, -2) for each in climbed] == pytest.approx([2154, 6462, 0], abs=300)
    assert [each.skipped for each in climbed] == ["", "", "the gate is met"]
    last, before = climbed[1].held_out_last, climbed[0].held_out_first
    assert last is not None
    assert before is not None
    assert last < before
    assert climbed[1].held_out_first == pytest.approx(climbed[0].held_out_last, rel=1e-4)
    model = (second / "model" / "model.safetensors").read_bytes()
    assert (third / "model" / "model.safetensors").read_bytes() == model
    assert model != (first / "model" / "model.safetensors").read_bytes()
    assert json.loads((third / "metrics.json").read_text()) == {"recovery_steps": 0}


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (Climbed("distill", tokens=6900), "the budget is spent"),
        (
            Climbed("distill", tokens=1000, held_out_first=2.0, held_out_last=1.995),
            "gained 0.2% of the held-out",
        ),
    ],
)
def test_a_rung_that_does_not_pay_is_not_climbed(
    before: Climbed, words: str, climb: Callable[..., Path], tmp_path: Path, models_folder: Path
) -> None:
    write([before], tmp_path)
    (tmp_path / "model").symlink_to(models_folder / "pruned")
    skipped = climb("rung", rungs(section(), gated=True)[2], before=tmp_path)
    assert words in read(skipped)[1].skipped


class Clock:
    """Hardly goes on but where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.fixture
def timed(
    climb: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[float, Callable[[int], float]], tuple[list[float], float]]:
    """The learning rates of a rung of 40 seconds, and the seconds that it took.

    Given are what a step is thought to take before the first, and what each takes.
    """

    def call(thought: float, takes: Callable[[int], float]) -> tuple[list[float], float]:
        clock, step = Clock(), training.Training._train

        def train(self: training.Training, examples: list[int]) -> dict[str, float]:
            entry = step(self, examples)
            clock.now += takes(int(entry["step"]))
            return entry

        monkeypatch.setattr(training, "time", clock)
        monkeypatch.setattr(training.Training, "_train", train)
        monkeypatch.setattr(training.Training, "_steps_in", lambda self, seconds: int(seconds / thought))
        (rung,) = rungs(section(budget={"seconds": 40}, held_out_ratio=0.0), gated=False)
        history = (climb("rung", rung) / "history.jsonl").read_text().splitlines()
        return [json.loads(line)["learning_rate"] for line in history], clock.now

    return call


def test_seconds_become_steps_before_the_first(timed: Any) -> None:
    rates, seconds = timed(1.0, lambda step: 1.0)
    assert (len(rates), round(seconds)) == (40, 40)
    assert rates[-1] < 0.01 * max(rates)


@pytest.mark.parametrize(
    ("thought", "takes", "least", "most"),
    [
        (1.0, lambda step: 1.0 if step <= 5 else 2.0, 22, 23),
        (2.0, lambda step: 1.0, 39, 40),
        (8.0, lambda step: 4.0 if step == 1 else 1.0, 35, 37),
    ],
    ids=["slower from the sixth step on", "faster than was thought", "but for the first step"],
)
def test_steps_follow_what_they_take(
    thought: float, takes: Callable[[int], float], least: int, most: int, timed: Any
) -> None:
    """The seconds are used and kept to, and the rate ends at zero."""
    rates, seconds = timed(thought, takes)
    assert least <= len(rates) <= most
    assert 38 < seconds <= 41
    assert rates[-1] < 0.05 * max(rates)


def test_a_run_judges_each_rung() -> None:
    steps = Steps(RunConfig.model_validate(tiny(recover={"ladder": "auto", "budget": {"seconds": 60}})))
    names = [step.label for step in steps]
    climbed = [name for name in names if name.startswith(("gate", "recover", "evaluate"))]
    assert climbed == [
        "evaluate dense", "evaluate pruned",
        "gate before rung 1", "recover rung 1", "evaluate rung 1 distill",
        "gate before rung 2", "recover rung 2", "evaluate rung 2 distill",
        "gate before rung 3", "recover", "evaluate recovered", "gate",
    ]  # fmt: skip
    for name in names:
        # MLflow has each as a part of the names of metrics and params.
        _validate_param_name(f"digests.{name}")
    reads = {step.label: step.inputs for step in steps}
    assert reads["recover"]["before"].step == reads["recover"]["pruned"].step
    assert reads["gate before rung 3"]["final"].step.role == "rung 2 distill"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"ladder": "auto", "budget": {"tokens": 5000}}, "ladder climbs behind pruning, but"),
        ({"budget": {"seconds": 60}}, "counts seconds, but prune.schedule mid_training trains in parts"),
    ],
)
def test_what_rounds_of_a_schedule_cannot_have(section: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_run(tmp_path, recover=section)
    rounds = ["prune.schedule=mid_training", "prune.repair=none"]
    with pytest.raises(BadInput, match=words):
        check(load(path, rounds))
    check(load(write_run(tmp_path / "tokens", recover={"budget": {"tokens": 5000}}), rounds))
