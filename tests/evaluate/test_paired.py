"""Paired intervals by hand, by simulation, and where there is too little to say anything."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from resprout.tasks.evaluate.paired import change_in, compare, compared, perplexity_ratio, quantile

DETAILS: dict[str, Any] = {"perplexity": {"metric": "w_ppl"}, "averaged": ["a_acc", "b_acc"]}


def test_a_ratio_of_perplexities_by_hand() -> None:
    # Gaps of 1 and 3 nats over 2 and 2 tokens: 1 nat a token; residuals -1 and 1, so the error of the sum is
    # sqrt(2 * 2 / 1) = 2, of the mean 0.5, and Student's quantile with 1 degree of freedom is 12.706.
    found = perplexity_ratio([[4.0, 2], [6.0, 2]], [[5.0, 2], [9.0, 2]])
    assert found.median == pytest.approx(math.e)
    assert found.low == pytest.approx(math.exp(1 - 12.7062 * 0.5), rel=1e-4)
    assert found.high == pytest.approx(math.exp(1 + 12.7062 * 0.5), rel=1e-4)
    assert not found.different


def test_windows_that_differ_from_each_other_do_not_widen_the_interval() -> None:
    dense = [[float(1000 * at), 100] for at in range(1, 11)]
    found = perplexity_ratio(dense, [[nll + 10 + 0.1 * (-1) ** at, 100] for at, (nll, _) in enumerate(dense)])
    assert found.low > 1.1
    assert found.high < 1.11


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = random.Random(17)
    held, rounds = 0, 400
    for _ in range(rounds):
        dense = [[draw.gauss(300, 50), 100] for _ in range(24)]
        other = [[nll + draw.gauss(5, 12), 100] for nll, _ in dense]
        found = perplexity_ratio(dense, other)
        held += found.low <= math.exp(0.05) <= found.high
    assert 0.92 <= held / rounds <= 0.98


def test_one_window_says_nothing() -> None:
    assert perplexity_ratio([[4.0, 2]], [[5.0, 2]]).high == math.inf
    samples = {"windows": [[4.0, 2]], "right": {}}
    assert "w_ppl_ratio_high" not in compare(samples, samples, {"perplexity": {"metric": "w_ppl"}})


def test_changes_of_accuracies_are_of_the_same_questions() -> None:
    dense = {"windows": [[1.0, 1], [1.0, 1]], "right": {"a_acc": [1.0, 0.0, 1.0, 0.0], "b_acc": [1.0] * 4}}
    other = {"windows": [[1.0, 1], [1.0, 1]], "right": {"a_acc": [0.0, 0.0, 1.0, 0.0], "b_acc": [1.0] * 4}}
    found = compare(dense, other, DETAILS)
    # Differences -1, 0, 0, 0: mean -0.25, variance 0.25, error 0.25.
    reach = quantile(3) * 0.25
    assert change_in(found, "a_acc") == pytest.approx((-0.25, -0.25 - reach, -0.25 + reach))
    assert change_in(found, "b_acc") == (0.0, 0.0, 0.0)
    assert change_in(found, "zero_shot_mean_acc") == pytest.approx(
        (-0.125, -0.125 - reach / 2, -0.125 + reach / 2)
    )
    assert (found["w_ppl_ratio"], found["w_ppl_ratio_low"], found["w_ppl_ratio_high"]) == (1.0, 1.0, 1.0)


def test_scores_of_an_earlier_version_are_not_compared(tmp_path: Path) -> None:
    assert compared(tmp_path, tmp_path) == {}
    (tmp_path / "samples.json").write_text(json.dumps({"windows": [[1.0, 1]] * 3, "right": {}}))
    (tmp_path / "details.json").write_text(json.dumps(DETAILS))
    assert compared(tmp_path, tmp_path)["w_ppl_ratio"] == 1.0
