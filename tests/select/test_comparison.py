from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resprout.tasks.select.comparison import SIZES, Arm, compare, difference, read_arms, role_of, write

WINDOWS = 40


def arm(name: str, sums: Any, sizes: Any = None, measure: str = "bits per byte") -> Arm:
    values = np.array(sums, dtype=float)
    given = np.ones(values.shape[1]) if sizes is None else np.array(sizes, dtype=float)
    return Arm(name, {measure: values}, {measure: given}, {})


def test_a_difference_by_hand() -> None:
    """Two seeds, two windows of 10 and 30 tokens: gaps (2, 6) and (4, 12), means 0.2 and 0.4 a token, 0.3 in
    all.

    Over seeds the variance of 0.2 and 0.4 is 0.02, of their mean 0.01. Over windows nothing is left: each is
    0.3 a token in the mean of the seeds. With one degree of freedom t is 12.7062: 0.3 +- 1.27062.
    """
    one, other = arm("a", [[5, 9], [7, 15]], [10, 30]), arm("b", [[3, 3], [3, 3]], [10, 30])
    found = difference(one, other, "bits per byte", 1)
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - 1.27062, 0.3 + 1.27062), rel=1e-4)
    assert not found.differs


def test_the_text_is_chance_too() -> None:
    """Equal seeds: gaps 1 and 3 in two windows of one token. Means 2, residuals -1 and 1: their variance is
    2 * 2 / 1 / 4 = 1, with one degree of freedom.
    """
    found = difference(arm("a", [[1, 3], [1, 3]]), arm("b", [[0, 0], [0, 0]]), "bits per byte", 1)
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)


def test_more_comparisons_widen_each_interval() -> None:
    rng = np.random.default_rng(0)
    one, other = (arm(name, rng.normal(size=(3, WINDOWS))) for name in "ab")
    alone, among = (difference(one, other, "bits per byte", count) for count in (1, 8))
    assert among.high - among.low > 1.1 * (alone.high - alone.low)


def test_one_seed_says_nothing_of_chance() -> None:
    found = difference(arm("a", [[1, 2]]), arm("b", [[0, 0]]), "bits per byte", 1)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.differs


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_arms_differ_as_often_as_chance_says(seeds: int) -> None:
    """Noise by seed, by window and of each: in 400 draws at most 7 % of intervals leave out the truth."""
    rng = np.random.default_rng(seeds)
    outside = 0
    for _ in range(400):
        gaps = rng.normal(size=(seeds, 1)) + rng.normal(size=(1, WINDOWS)) + rng.normal(size=(seeds, WINDOWS))
        outside += difference(arm("a", gaps), arm("b", np.zeros_like(gaps)), "bits per byte", 1).differs
    assert outside / 400 <= 0.07


def test_the_winner_is_named_and_whether_it_is_more_than_noise() -> None:
    rng = np.random.default_rng(1)
    text = rng.normal(size=(1, WINDOWS)) + 5
    noise = lambda: rng.normal(size=(3, WINDOWS)) * 0.05  # noqa: E731
    pruned = arm("no recovery", np.repeat(text + 2, 3, axis=0))
    random, near, far = (
        arm(name, text + shift + noise()) for name, shift in (("random", 1.0), ("near", 1.0), ("far", 0.5))
    )
    found = compare([near, random, far], pruned, "far")
    assert [one["name"] for one in found["arms"]][:2] == ["no recovery", "far"]
    assert found["best"] == {"bits per byte": "far"}
    (sentence,) = found["sentences"]
    assert sentence.startswith("By bits per byte, far is best, -0.494")
    assert "more than noise" in sentence
    assert {one["arm"]: one["differs"] for one in found["differences"]} == {"near": False, "far": True}
    assert found["as_good"] == {"bits per byte": []}


def test_what_may_be_as_good_as_the_best_is_named() -> None:
    """Arms that differ from the best by less than noise share its place, whoever is the first of them."""
    rng = np.random.default_rng(2)
    text = rng.normal(size=(1, WINDOWS)) + 5
    noise = lambda: rng.normal(size=(3, WINDOWS)) * 0.05  # noqa: E731
    shifts = {"no recovery": 2.0, "random": 1.0, "third": 0.8, "best": 0.499, "near": 0.5, "also": 0.501}
    pruned, *arms = (arm(name, text + shift + noise()) for name, shift in shifts.items())
    found = compare(arms, pruned)
    (first,) = found["best"].values()
    assert {first, *found["as_good"]["bits per byte"]} == {"best", "near", "also"}
    two = " and ".join(one for one in ("best", "near", "also") if one != first)
    won, own = found["sentences"]
    assert won.endswith(f"more than noise); {two} may be as good.")
    assert own.startswith(
        f"What the run goes on with is the recovery on random's rows; to go on with {first}'s"
    )
    assert len(compare(arms, pruned, "near")["sentences"]) == 1


def test_random_rows_that_cost_answers_name_no_winner() -> None:
    """Perplexity may gain where accuracy collapses: two seeds, each 30 of 40 answers lost."""
    shown = {}
    for name, loss, right in (("no recovery", 2.0, 1.0), ("random", 1.0, 0.25), ("other", 0.5, 0.5)):
        texts = arm(name, np.full((2, WINDOWS), loss))
        answers = np.tile((np.arange(WINDOWS) < right * WINDOWS).astype(float), (2, 1))
        shown[name] = Arm(
            name,
            {**texts.sums, "accuracy": answers},
            {**texts.sizes, "accuracy": np.ones(WINDOWS)},
            {},
        )
    found = compare([shown["random"], shown["other"]], shown["no recovery"])
    assert found["sound"] == {"bits per byte": True, "accuracy": False}
    assert found["sentences"][0].startswith("By accuracy, recovery on random rows left the model worse")


def test_one_window_says_nothing_of_chance() -> None:
    pruned, random, other = (
        arm(name, np.full((3, 1), value))
        for name, value in (("no recovery", 2), ("random", 1), ("other", 0.5))
    )
    sentence = compare([random, other], pruned)["sentences"][0]
    assert "one window of text says nothing of chance" in sentence


def test_random_rows_that_do_harm_name_no_winner() -> None:
    pruned, random, other = (
        arm(name, np.full((3, WINDOWS), value))
        for name, value in (("no recovery", 1.0), ("random", 1.5), ("other", 0.5))
    )
    found = compare([random, other], pruned)
    assert found["sound"] == {"bits per byte": False}
    (sentence,) = found["sentences"]
    assert "the training is ill, not the data" in sentence


def scores(folder: Path, loss: float, right: list[int]) -> Path:
    folder.mkdir()
    samples = {
        "windows": [[10 * loss, 10], [20 * loss, 20]],
        "divergences": [[2 * loss, 10]],
        "right": {"quiz_acc": right},
    }
    (folder / "samples.json").write_text(json.dumps(samples))
    # A token has two bytes: bits a byte = nats a token / ln 2 / 2.
    (folder / "metrics.json").write_text(json.dumps({"words_bits_per_byte_seq32": loss / math.log(2) / 2}))
    return folder


def test_scores_by_role(tmp_path: Path) -> None:
    inputs = {"pruned": scores(tmp_path / "pruned", 4.0, [0, 0])}
    for name, losses in (("random", (3.0, 3.2)), ("paper:self", (2.0, 2.4))):
        for seed, loss in enumerate(losses, 17):
            folder = tmp_path / f"{name}{seed}".replace(":", "-")
            inputs[role_of(name, seed)] = scores(folder, loss, [1, 0])
            rows = tmp_path / f"rows{len(inputs)}"
            rows.mkdir()
            summary: dict[str, Any] = {"selected_rows": seed, "filled_tokens": 100, "answer_tokens": 40}
            summary["selected_cut_rows"] = 2
            if name == "paper:self":
                summary["answers"] = {
                    "self_written_rows": 3,
                    "original_rows": 1,
                    "answered_tokens": 90,
                    "answer_tokens": 30,
                    "cut_rows": 1,
                }
            (rows / "summary.json").write_text(json.dumps(summary))
            inputs[f"rows of {role_of(name, seed)}"] = rows
    arms = {one.name: one for one in read_arms(inputs)}
    assert list(arms) == ["random", "paper:self"]
    bits = [loss / math.log(2) / 2 for loss in (2.0, 2.4)]
    assert arms["paper:self"].by_seed("bits per byte") == pytest.approx(bits)
    assert arms["paper:self"].by_seed("divergence") == pytest.approx([0.4, 0.48])
    assert arms["paper:self"].by_seed("accuracy") == [0.5, 0.5]
    write(inputs, tmp_path, "random")
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["best"]["divergence"] == found["best"]["bits per byte"] == "paper:self"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["paper_self_divergence"] == pytest.approx(0.44)
    assert metrics["no_recovery_accuracy"] == 0.0
    unrecovered, *sized = found["arms"]
    assert "rows" not in unrecovered
    sizes = {one["name"]: [one[size] for size in SIZES] for one in sized}
    assert sizes == {"random": [17.5, 100.0, 40.0, 2.0], "paper:self": [4.0, 90.0, 30.0, 1.0]}
