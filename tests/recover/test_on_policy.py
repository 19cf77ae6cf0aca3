from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.on_policy import sampled
from resprout.tasks.recover.stage import recover
from resprout.tasks.recover.training_data import TrainingData
from tiny_models import tiny_model

ROWS = [Encoded([10, 11, 12], [20, 21, 22, 23]), Encoded([], [30, 31, 32, 33, 34, 35, 36, 37])]


def data() -> TrainingData:
    return TrainingData(Examples.written([("rows", ROWS)]), [[0, 1]], 0, 1, [])


def test_prompts_stay_and_responses_are_the_student_s() -> None:
    """As long as its own at most; running text goes on from its first quarter. Greedy logits decide here."""
    model: Any = tiny_model("llama").train()
    with torch.no_grad():
        # A head that is certain draws what is likeliest: token 99, whatever stands before it.
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[99] = 0.0
    bias = torch.zeros(256)
    bias[99] = 100.0
    model.lm_head.register_forward_hook(lambda module, given, output: output + bias)
    found = sampled(model, data(), [0, 1])
    assert found.rows[0] == Encoded([10, 11, 12], [99] * 4)
    assert found.rows[1] == Encoded([30, 31], [99] * 6)
    assert found.steps == [[0, 1]]
    assert model.training


def test_a_response_ends_where_the_student_ends_it() -> None:
    model: Any = tiny_model("llama")
    bias = torch.zeros(256)
    bias[2] = 100.0
    model.lm_head.register_forward_hook(lambda module, given, output: output + bias)
    found = sampled(model, data(), [0, 1])
    assert [row.response_ids for row in found.rows] == [[2], [2]]


def test_it_draws_from_the_generator_and_packs_like_others() -> None:
    model: Any = tiny_model("gpt2")
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampled(model, data(), [0, 1]).rows[:])
    assert draws[0] == draws[1] != draws[2]


def test_a_share_of_the_steps_is_the_student_s(
    models_folder: Path, write_selection: Callable[..., Path], tmp_path: Path
) -> None:
    """Of twenty steps about half, by the seed; their cross-entropy is shown and not learned."""
    inputs = {name: models_folder / name for name in ("pruned", "dense")}
    inputs["selection"] = write_selection(count=30, requested=6000)
    config = RecoverConfig(
        method="distill", batch_tokens=300, learning_rate=5e-3, distill={"on_policy": 0.5}, held_out_ratio=0.2
    )
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        recover.body(Job(config, dtype="float32"), inputs, tmp_path / name, silent)
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    assert found[0] == found[1]
    own = [entry["on_policy"] for entry in found[0]]
    assert 5 <= sum(own) <= 15
    assert found[0][-1]["held_out"] < found[0][0]["held_out_before"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill_weight": 0.0}, "no one judges"),
        ({"distill_weight": 1.0, "distill": {"on_policy": 0.5, "teacher": "disk"}}, "was not asked about"),
        ({"distill_weight": 1.0, "devices": {"processes": 2}}, "which one process does"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RecoverConfig(**{"distill": {"on_policy": 0.5}, **changes})
