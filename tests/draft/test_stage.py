"""Metrics of the draft by hand, the stage on tiny models, and what it says of input that does not fit."""

from __future__ import annotations

import json

import pytest

from resprout.configs.schema import DraftConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.draft.assisted import Written
from resprout.tasks.draft.stage import draft, summary
from resprout.tasks.report.draft import draft_sentence
from tiny_models import write_tiny_folder

CONFIG = DraftConfig(prompts=("w5 w9", "w7"), new_tokens=8, proposed_tokens=3, repeats=3)


def test_metrics_by_hand():
    """8 tokens in 2 passes keep 6 of 6, 4 in 3 passes 1 of 6: 7 of 12, and 12 tokens in 5 passes.

    Alone 12 tokens take 6 s, with help 3 s in each round: 2 and 4 tokens a second.
    """
    alone = [Written([1] * 8, 8, 0, 4.0), Written([2] * 4, 4, 0, 2.0)]
    helped = [Written([1] * 8, 2, 6, 1.0), Written([2, 2, 2, 3], 3, 6, 2.0)]
    metrics, details = summary(CONFIG, [{False: alone, True: helped}] * 3)
    assert metrics == {
        "draft_acceptance_rate": pytest.approx(7 / 12),
        "draft_tokens_per_pass": 2.4,
        "draft_same_text_share": 0.5,
        "draft_plain_tokens_per_s": 2.0,
        "draft_assisted_tokens_per_s": 4.0,
        "draft_assisted_tokens_per_s_ratio": 2.0,
        "draft_assisted_tokens_per_s_ratio_low": 1.0,  # three rounds are too few to call it a difference
        "draft_assisted_tokens_per_s_ratio_high": 2.0,
    }
    assert details["prompts"][1] == {
        "prompt": "w7", "tokens": 4, "accepted": 1, "proposed": 6, "same_text": False,
    }  # fmt: skip


def test_one_token_leaves_nothing_to_propose():
    one = [Written([2], 1, 0, 1.0)]
    metrics, details = summary(CONFIG.model_copy(update={"prompts": ("w5",)}), [{False: one, True: one}] * 3)
    assert "draft_acceptance_rate" not in metrics
    assert metrics["draft_tokens_per_pass"] == 1.0
    assert details["prompts"][0]["proposed"] == 0
    assert draft_sentence(metrics).startswith(
        "As a draft for the dense model: nothing was proposed, as every prompt was answered by one token, "
        "1.00 tokens for each pass of the dense model; together 1.0 tokens/s"
    )


def test_the_stage_on_a_model_and_itself(tmp_path):
    folder = write_tiny_folder(tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    draft.body(Job(CONFIG, 1, "cpu", "float32", False), {"source": folder, "model": folder}, out, silent)
    metrics, details = (json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "details"))
    assert metrics["draft_acceptance_rate"] == 1.0
    assert metrics["draft_same_text_share"] == 1.0
    assert metrics["draft_tokens_per_pass"] == 4.0
    assert len(details["seconds_a_token"]["alone"]) == 3
    assert details["hardware"]
    assert not details["chat"]


def test_the_sentence_by_hand():
    """8 tokens in 4 passes keep 4 of 16; 8 in 4 s alone, in 5 s with help, in six rounds: surely slower."""
    rounds = [{False: [Written([1] * 8, 8, 0, 4.0)], True: [Written([1] * 8, 4, 16, 5.0)]}] * 6
    metrics, _ = summary(CONFIG.model_copy(update={"prompts": ("w5",)}), rounds)
    assert draft_sentence(metrics) == (
        "As a draft for the dense model: 25 % of what it proposes is accepted, 2.00 tokens for each pass of "
        "the dense model; together 1.6 tokens/s, the dense model alone 2.0 (x0.80, x0.80-0.80); the same "
        "text behind all prompts."
    )
