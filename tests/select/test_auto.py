"""Pools whose damage is known, on the path of large ones, with divergences in place of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.select import auto, paser_size
from resprout.tasks.select.auto import estimated, shortlist
from resprout.tasks.select.duplicates import Questions
from resprout.tasks.select.pool import Choice, Pool
from resprout.tasks.select.selection import OUTSIDE, Selection

EACH = 300
SKILLS = ("cook", "sail", "sums", "noise")


class Known:
    """Divergences that are known, given as they are asked for."""

    def __init__(self, truth: np.ndarray, difficulty: np.ndarray | None = None) -> None:
        self.truth, self.difficulty = truth, difficulty
        self.jsd = np.full(len(truth), np.nan)
        self.dense_nll = np.ones(len(truth))
        self.asked = list[str]()

    def __call__(self, rows: Iterable[int], what: str = "rows") -> None:
        self.asked.append(what)
        for row in rows:
            self.jsd[row] = self.truth[row]

    def following_difficulty(self) -> np.ndarray:
        assert self.difficulty is not None
        return self.difficulty


class Planted:
    """1,200 rows of four skills, `EACH` of one, and how far pruning moved the model on them."""

    def __init__(self, damage: Sequence[float], **changes: Any) -> None:
        rng = np.random.default_rng(4)
        self.skill = rng.permutation(np.repeat(np.arange(4), EACH))
        centres = np.eye(4, 16)
        points = centres[self.skill] + rng.normal(size=(len(self.skill), 16)) * 0.1
        self.points = points / np.linalg.norm(points, axis=1, keepdims=True)
        self.truth = np.array(damage)[self.skill] * rng.uniform(0.5, 1.5, len(self.skill))
        rows = [
            {
                "instruction": f"{SKILLS[skill]} {number}",
                "input": "",
                "output": f"{SKILLS[skill]} {number % 7}",
            }
            for number, skill in enumerate(self.skill)
        ]
        tokens = rng.integers(20, 60, len(rows))
        held = int(tokens.sum())
        encoded: Sequence[Encoded] = [Encoded([1], [2])] * len(rows)
        ids = [f"{number:04d}" for number in range(len(rows))]
        whole = np.zeros(len(rows), dtype=bool)
        self.pool = Pool(rows, ids, encoded, tokens, tokens, whole, [], held // 20, held // 20)
        settings = {"clusters": 4, "landmarks": 200, "sample_rows": 30, **changes.pop("paser", {})}
        self.config = SelectConfig.model_validate(
            {"pool": [{"source": "x"}], "budget_ratio": 0.05, "paser": settings, **changes}
        )

    def select(
        self, known: Known | None = None, seed: int = 0, **more: Any
    ) -> tuple[Selection, Choice, Known]:
        known = known or Known(self.truth)
        questions = Questions(self.pool.rows, np.zeros((len(self.skill), 1)), 0.95)
        given: Any = known
        found = auto.select(self.config, self.pool, self.points, questions, given, seed, silent, **more)
        return found, found.choice(self.pool), known

    def granted(self, found: Selection) -> dict[str, int]:
        """What each skill was granted, by the skill that most of a cluster's rows are of."""
        of = [np.bincount(self.skill[found.labels == k]).argmax() for k in range(len(found.grants))]
        return {
            name: sum(grant for grant, one in zip(found.grants, of, strict=True) if one == skill)
            for skill, name in enumerate(SKILLS)
        }


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (paser_size, auto):
        monkeypatch.setattr(module, "MOST_ROWS", 500)


def test_the_skill_that_was_hurt_gets_the_largest_budget() -> None:
    """Damage 0.4 on one skill and 0.05 on the others: its share is 0.4 / 0.55, within the sample's error."""
    planted = Planted([0.05, 0.05, 0.4, 0.05])
    found, choice, known = planted.select()
    granted = planted.granted(found)
    share = granted["sums"] / planted.pool.budget
    assert share == pytest.approx(0.4 / 0.55, abs=0.06)
    taken = planted.skill[choice.accepted]
    assert (taken == 2).mean() > 0.6
    assert found.path["divergence"].startswith("30 rows of each cluster")
    compared = int((~np.isnan(known.jsd)).sum())
    assert compared == choice.metrics["compared_rows"] < 600
    assert found.path["landmarks"] == 200


def test_the_budget_is_filled_within_a_row() -> None:
    found, choice, _ = Planted([0.1, 0.2, 0.3, 0.4]).select()
    pool = Planted([0.1, 0.2, 0.3, 0.4]).pool
    filled = int(pool.tokens[choice.accepted].sum())
    assert 0.99 * pool.budget <= filled <= pool.budget
    assert sum(found.grants) == pool.budget
    assert sum(found.outcome.filled) == filled


def test_rows_outside_the_shortlist_say_so_and_those_in_it_are_compared() -> None:
    planted = Planted([0.1, 0.1, 0.1, 0.1])
    found, choice, known = planted.select()
    listed = ~np.isnan(known.jsd)
    for row in range(len(planted.skill)):
        facts = choice.facts(row)
        assert (facts["reason"] == OUTSIDE) == (not listed[row])
        assert ("jsd" in facts) == listed[row]
    # Four times the budget of a cluster, but never fewer rows than its sample.
    for k, grant in enumerate(found.grants):
        rows = np.flatnonzero((found.labels == k) & listed)
        assert int(planted.pool.tokens[rows].sum()) >= 4 * grant
        assert len(rows) >= 30
    assert known.asked == [
        "rows of the clusters' samples", "more rows of the shortlists", "rivals of rows of the shortlists"
    ]  # fmt: skip


def test_only_rivals_of_the_shortlists_are_compared() -> None:
    """600 questions of two answers each, of which the dense model likes the second better."""
    planted = Planted([0.1, 0.1, 0.1, 0.1])
    for row in range(0, 4 * EACH, 2):
        planted.pool.rows[row + 1]["instruction"] = planted.pool.rows[row]["instruction"]
        planted.pool.rows[row + 1]["output"] = "another"
    known = Known(planted.truth)
    known.dense_nll[1::2] = 0.5
    found, choice, _ = planted.select(known)
    compared = np.flatnonzero(~np.isnan(known.jsd))
    assert len(compared) == choice.metrics["compared_rows"] < 800
    # Of each question both answers or none: a row is not taken for want of its rival.
    assert (compared[::2] + 1 == compared[1::2]).all()
    assert (np.array(choice.accepted) % 2 == 1).all()
    assert set(found.dropped) == set(compared[::2].tolist())
    assert choice.metrics["rival_rows"] == len(compared) / 2
    row = int(compared[0])
    assert choice.facts(row)["reason"].startswith(f"the question of {row + 1:04d}, whose answer")
    assert {choice.facts(row)["reason"] == OUTSIDE for row in compared.tolist()} == {False}
    filled = int(planted.pool.tokens[choice.accepted].sum())
    assert 0.99 * planted.pool.budget <= filled <= planted.pool.budget


def test_rows_that_are_answers_for_the_most_part_come_first() -> None:
    """Of 40 tokens, 30 or 10 are the answer: the latter would need three times the divergence."""
    planted = Planted([0.1, 0.2, 0.3, 0.4], paser={"sample_rows": None})
    long = np.arange(4 * EACH) % 2 == 0
    tokens = np.full(4 * EACH, 40)
    encoded = [Encoded([1] * 10, [2] * 30) if one else Encoded([1] * 30, [2] * 10) for one in long]
    planted.pool = replace(planted.pool, encoded=encoded, tokens=tokens, costs=tokens)
    planted.truth = np.array([0.1, 0.2, 0.3, 0.4])[planted.skill]
    found, choice, _ = planted.select()
    assert long[choice.accepted].all()
    row = choice.accepted[0]
    assert choice.facts(row)["efficiency"] == pytest.approx(planted.truth[row] * 30 / 40)
    assert found.path["efficiency"] == "divergence over the answer for each token of the row"


def test_all_rows_are_compared_where_no_sample_is_wanted() -> None:
    planted = Planted([0.1, 0.2, 0.3, 0.4], paser={"sample_rows": None})
    found, choice, _ = planted.select()
    assert choice.metrics["compared_rows"] == 4 * EACH
    assert [one["cds_half_interval"] for one in found.clusters()] == [0.0] * 4


def test_a_poisoned_cluster_is_kept_out_of_the_majority() -> None:
    """Noise that pruning moves most takes most of the budget; what the model is for, or IFD, keeps it out."""
    planted = Planted([0.1, 0.1, 0.1, 0.6])
    found, choice, _ = planted.select()
    assert (planted.skill[choice.accepted] == 3).mean() > 0.5

    rng = np.random.default_rng(1)
    wanted = planted.points[rng.choice(np.flatnonzero(planted.skill != 3), 60, replace=False)]
    aimed = Planted([0.1, 0.1, 0.1, 0.6], capabilities={"rows": [{"source": "y"}], "reserve": 0.1})
    found, choice, _ = aimed.select(targets=wanted)
    assert (planted.skill[choice.accepted] == 3).mean() < 0.15
    # The reserve goes by degradation alone: 0.6 / 0.9 of a tenth.
    assert aimed.granted(found)["noise"] == pytest.approx(0.1 * 0.6 / 0.9 * aimed.pool.budget, rel=0.2)

    helped = Planted([0.1, 0.1, 0.1, 0.6], paser={"max_ifd": 1.0})
    difficulty = np.where(planted.skill == 3, 1.5, 0.5)
    found, choice, _ = helped.select(Known(planted.truth, difficulty))
    assert not (planted.skill[choice.accepted] == 3).any()
    assert choice.metrics["unhelped_rows"] == EACH
    row = int(np.flatnonzero(planted.skill == 3)[0])
    assert choice.facts(row) == {"reason": "its question does not help: IFD 1.500"}
    with pytest.raises(BadInput, match=r"max_ifd 1 leaves none of 1200 rows"):
        helped.select(Known(planted.truth, np.full(4 * EACH, 2.0)))


def test_a_pilot_moves_the_budget_to_what_heals() -> None:
    """Equal damage; a short recovery halves it on one skill and leaves the others as they are."""
    planted = Planted([0.2, 0.2, 0.2, 0.2])

    def tried(rows: Sequence[int]) -> np.ndarray:
        after = np.full(len(planted.skill), np.nan)
        after[list(rows)] = planted.truth[list(rows)] * np.where(planted.skill[list(rows)] == 0, 0.5, 1.0)
        return after

    found, _, _ = planted.select(tried=tried)
    # Its cluster is full before the budget is, so that what is left is shared.
    assert planted.granted(found)["cook"] > 0.9 * min(found.held[k] for k in range(4)) or (
        planted.granted(found)["cook"] > 0.9 * planted.pool.budget
    )
    assert sorted(round(one["healed"], 3) for one in found.clusters()) == [0.0, 0.0, 0.0, 0.5]


def test_a_model_that_was_not_hurt_gives_equal_shares() -> None:
    found, choice, _ = Planted([0.0] * 4).select()
    assert max(found.grants) - min(found.grants) <= 1
    assert any("equals the dense one on every row" in warning for warning in choice.warnings)


@pytest.mark.parametrize("clusterer", ["diffusion_nmf", "kmeans"])
def test_the_same_seed_gives_the_same_choice(clusterer: str) -> None:
    planted = Planted([0.1, 0.2, 0.3, 0.4], paser={"clusterer": clusterer})
    first, again, other = (planted.select(seed=seed)[1].accepted for seed in (3, 3, 4))
    assert first == again
    assert set(first) != set(other)


def test_the_interval_of_a_sample_holds_the_mean_as_often_as_it_says() -> None:
    """30 of 100 rows of a skewed population: the interval of 95 % holds the mean in 90 % of draws."""
    rng = np.random.default_rng(0)
    values = rng.exponential(size=100)
    inside = 0
    for _ in range(400):
        drawn = rng.permutation(100)[:30]
        found = estimated(values, [drawn], [100])
        inside += abs(found.cds[0] - values.mean()) <= found.reach[0]
    assert 0.9 < inside / 400 < 0.99


def test_the_interval_by_hand() -> None:
    """1 and 3 of four: mean 2, s = sqrt 2, s / sqrt 2 * sqrt(1 - 2/4) = 0.7071, t(1) = 12.7062."""
    found = estimated(np.array([1.0, 9.0, 3.0, 9.0]), [np.array([0, 2]), np.array([1, 3])], [4, 2])
    assert found.cds.tolist() == [2.0, 9.0]
    assert found.reach == pytest.approx([12.7062 * 0.70711, 0.0], rel=1e-4)
    assert found.compared.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("wanted", "fewest", "taken"), [(25, 1, 3), (30, 1, 3), (25, 4, 4), (999, 1, 5), (0, 2, 2)]
)
def test_shortlist_by_hand(wanted: float, fewest: int, taken: int) -> None:
    """Rows of 10 tokens: 25 and 30 tokens take three; never fewer than were sampled, nor more than there
    are."""
    rows = np.array([4, 2, 0, 1, 3])
    assert shortlist(rows, np.full(5, 10), wanted, fewest).tolist() == rows[:taken].tolist()


def test_time_grows_with_the_rows() -> None:
    """Four times the rows take at most six times as long; the benchmarks have the models' part."""
    from timeit import timeit

    def time(rows: int) -> float:
        points = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
        from resprout.tasks.select.cluster import diffusion_nmf

        call: Callable[[], Any] = lambda: diffusion_nmf(points, 4, 0, landmarks=200)  # noqa: E731
        call()
        return min(timeit(call, number=1) for _ in range(3))

    assert time(16_000) / time(4_000) <= 6
