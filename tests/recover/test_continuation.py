"""Going on from a finished recovery: which tokens, by what schedule, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.load import load
from resprout.configs.schema import Continuation, RecoverConfig, RunConfig
from resprout.flows.check import check_adapters
from resprout.flows.continue_recovery import continued, override
from resprout.flows.stages import Steps
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.stage import config_data
from resprout.tasks.recover.continuation import behind, continuation
from resprout.tasks.recover.ladder import Climbed, write
from resprout.tasks.recover.stage import recover
from resprout.tasks.recover.training_data import prepare
from tiny_run import config as tiny
from tiny_run import write_run

Write = Callable[..., Path]
RECOVER = {"batch_tokens": 600, "learning_rate": 5e-3, "method": "full", "held_out_ratio": 0.2}


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_it_trains_on_what_comes_next_by_a_schedule_of_its_own(
    tmp_path: Path, models_folder: Path, write_selection: Write
) -> None:
    """Three times the tokens are two more parts of an order of three; the loss goes on where it was."""
    selection = write_selection(count=200)
    first, more = tmp_path / "first", tmp_path / "more"
    for folder in (first, more):
        folder.mkdir()
    base = RecoverConfig(**RECOVER, continued=3.0)
    inputs = {"pruned": models_folder / "pruned", "selection": selection}
    recover.body(Job(base, dtype="float32"), inputs, first, silent)
    section = continuation(base)
    inputs |= {"pruned": first / "model", "before": first}
    recover.body(Job(section, dtype="float32"), inputs, more, silent)
    one, two = history(first), history(more)
    assert (len(one), len(two)) == (5, 10)
    assert [entry["step"] for entry in two] == list(range(1, 11))
    peak = RECOVER["learning_rate"]
    assert two[0]["learning_rate"] < peak
    assert max(entry["learning_rate"] for entry in two) == pytest.approx(peak)
    assert two[-1]["learning_rate"] < 0.1 * peak
    before, after = one[0]["held_out_before"], two[-1]["held_out"]
    assert two[0]["held_out_before"] == pytest.approx(one[-1]["held_out"], rel=1e-4)
    assert after < one[-1]["held_out"] < before
    # The steps are those that one training of three times the tokens would have.
    whole = prepare(RecoverConfig(**RECOVER, tokens=9000), inputs, 17)
    rest = prepare(behind(section, first), inputs, 17)
    assert whole.steps[5:] == rest.steps
    assert rest.held_out == whole.held_out


def test_a_ladder_goes_on_with_its_last_method_and_without_its_budget(tmp_path: Path) -> None:
    section = RecoverConfig(ladder=("lora", "distill"), budget={"seconds": 5}, continued=2.0)
    found = continuation(section)
    assert (found.method, found.ladder, found.distill_weight) == ("distill", None, 1.0)
    write([Climbed("lora", tokens=1000.0), Climbed("distill", tokens=2000.0)], tmp_path)
    told = behind(found, tmp_path)
    assert (told.budget, told.tokens, told.skip_tokens) == (None, 3000, 3000)
    write([Climbed("lora", skipped="the gate is met")], tmp_path)
    with pytest.raises(StageFailed, match="trained on none"):
        behind(found, tmp_path)


def test_rounds_count_from_the_whole_s_beginning(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 7, "loss": 1}\n{"step": 8, "loss": 1}\n')
    told = behind(Continuation(continued=1.5, batch_tokens=600), tmp_path)
    assert (told.tokens, told.skip_tokens) == (2400, 4800)


def test_what_comes_before_keeps_its_key() -> None:
    plain, more = RecoverConfig(**RECOVER), RecoverConfig(**RECOVER, continued=2.0)
    assert config_data(plain) == config_data(more)
    two, three = (continuation(RecoverConfig(**RECOVER, continued=times)) for times in (2.0, 3.0))
    assert config_data(two) != config_data(three)


@pytest.mark.parametrize(
    ("recover", "labels"),
    [
        ({"continued": 2.0}, ["recover first", "recover"]),
        (
            {"continued": 2.0, "ladder": "auto", "budget": {"tokens": 5000}},
            ["recover rung 1", "recover rung 2", "recover rung 3", "recover"],
        ),
    ],
)
def test_steps_of_the_run(recover: dict[str, Any], labels: list[str]) -> None:
    steps = Steps(RunConfig.model_validate(tiny(recover=recover)))
    trained = [step for step in steps if step.label.startswith("recover")]
    assert [step.label for step in trained] == labels
    assert [step.gives for step in trained] == [f"recovery_{n}" for n in range(1, len(labels))] + ["recovery"]
    assert trained[-1].inputs["pruned"].step == trained[-1].inputs["before"].step == trained[-2].id
    assert "verdict" not in trained[-1].inputs
    assert [step.leaves is not None for step in trained] == [False] * (len(labels) - 1) + [True]


def test_rounds_are_followed_too() -> None:
    given = tiny(recover={"continued": 2.0})
    given["prune"] |= {"schedule": "mid_training", "repair": "none"}
    trained = [step for step in Steps(RunConfig.model_validate(given)) if step.label.startswith("recover")]
    assert [step.label for step in trained][-2:] == ["recover first", "recover"]
    assert isinstance(trained[-1].section, Continuation)
    assert len({step.gives for step in trained}) == len(trained) > 2


@pytest.mark.parametrize("text", ["2", "x", "0x", "1x", "0.5x", "-2x", "2x3", "", "infx", f"{'9' * 400}x"])
def test_what_is_no_factor_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="a number above 1 with an x"):
        override(text)
    assert override("2x") == "recover.continued=2"
    assert override("1.5x") == "recover.continued=1.5"


@pytest.mark.parametrize(
    ("recover", "words"),
    [
        ({"method": "reconstruct"}, "reconstruct has no number of tokens"),
        ({"method": "distill", "distill": {"teacher": "disk"}}, "give teacher: online"),
        ({"continued": 1.0}, "greater than 1"),
    ],
)
def test_what_cannot_be_continued(recover: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RecoverConfig(**{"continued": 2.0, **recover})


def test_an_adapter_of_several_trainings_is_no_export() -> None:
    given = tiny(recover={"continued": 2.0})
    given["export"]["formats"] = ["hf", "peft"]
    with pytest.raises(BadInput, match=r"with recover\.continued several trainings"):
        check_adapters(RunConfig.model_validate(given))


def test_without_a_recovery_there_is_nothing_to_continue(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    loaded, overrides = continued(load(path), ["seed=3"], "2x")
    assert loaded.config.recover is not None
    assert loaded.config.recover.continued == 2.0
    assert overrides == ["seed=3", "recover.continued=2"]
    given = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump({key: value for key, value in given.items() if key not in ("recover", "select")})
    )
    with pytest.raises(BadInput, match="no section recover"):
        continued(load(path), [], "2x")
