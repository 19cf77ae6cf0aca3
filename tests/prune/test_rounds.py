"""Schedules: shares of training and of the way to the target, by hand; what they refuse."""

from __future__ import annotations

import math

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.registry import SCHEDULES
from resprout.tasks.prune.rounds import Round, average_params, predicted_loss, schedule_of, target_at
from resprout.tasks.prune.stage import plan, prune, score

SHAPE = Shape("mistral", 10, 10, 2, (4,) * 3, (2,) * 3, (1,) * 3, config={"tie_word_embeddings": True})
"""1010 parameters, 910 of them outside the embeddings."""


def config(schedule, units=("ffn",), **settings):
    values = {
        "method": "flap",
        "target": {"params_ratio": 0.8},
        "schedule": schedule,
        "units": units,
        "repair": "none",
    }
    values["layout"] = "uniform"
    return PruneConfig.model_validate({**values, "schedule_settings": settings})


def rounds(schedule, **settings):
    return schedule_of(config(schedule, **settings))


def test_one_shot_is_one_round_in_front_of_training():
    assert rounds("one_shot") == [Round(0.0, 1.0)]


@pytest.mark.parametrize(
    ("name", "settings", "train", "done"),
    [
        # Of four steps: 1 - (3/4)^3, 1 - (1/2)^3, 1 - (1/4)^3, 1, the first a quarter of the way from begin.
        ("cubic", {}, [0.1875, 0.375, 0.5625, 0.75], [37 / 64, 7 / 8, 63 / 64, 1]),
        ("cubic", {"rounds": 2, "begin": 0.1, "end": 0.6}, [0.35, 0.6], [7 / 8, 1]),
        ("mid_training", {}, [0.375, 0.5, 0.625, 0.75], [37 / 64, 7 / 8, 63 / 64, 1]),
        ("mid_training", {"rounds": 2}, [0.5, 0.75], [7 / 8, 1]),
        ("prune_and_regrow", {}, [0.175, 0.35, 0.525, 0.7], [37 / 64, 7 / 8, 63 / 64, 1]),
    ],
)
def test_sizes_follow_the_equation_of_zhu_and_gupta(name, settings, train, done):
    """Eq. 1 with s_i = 0: s_t / s_f = 1 - (1 - (t - t0) / (n dt))^3, worked by hand; zero at t0 itself."""
    found = rounds(name, **settings)
    assert [one.train for one in found] == pytest.approx(train)
    assert [one.done for one in found] == pytest.approx(done)


def test_nothing_goes_before_training_has_begun():
    for name in ("cubic", "mid_training", "prune_and_regrow", "soft_shrinkage"):
        assert all(one.train > 0 for one in rounds(name)), name


def test_soft_shrinkage_aims_at_the_target_from_the_start():
    found = rounds("soft_shrinkage", share=0.25)
    assert {(one.done, one.shrink) for one in found} == {(1.0, 0.25)}
    assert [one.train for one in found] == [0.1875, 0.375, 0.5625, 0.75]


def test_regrowth_falls_along_a_cosine_over_all_training():
    """The share of the authors' code, (1 + cos(pi t)) / 2 of it after the share t of training.

    At 1/4, 1/2: (1 + sqrt(1/2)) / 2 and 1/2. The round at 3/4 cuts, and nothing comes back.
    """
    found = rounds("prune_and_regrow", rounds=3, end=0.75, regrow=0.4)
    assert [one.train for one in found] == [0.25, 0.5, 0.75]
    assert [one.regrow for one in found] == pytest.approx([0.2 * (1 + math.sqrt(0.5)), 0.2, 0.0])


@pytest.mark.parametrize("name", [entry.name for entry in SCHEDULES])
def test_every_schedule_trains_ever_more_and_ends_done(name):
    found = rounds(name)
    assert found[-1].done == 1.0
    shares = [one.train for one in found]
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert SCHEDULES.entry(name).summary


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (config("cubik"), "unknown schedule 'cubik'; did you mean 'cubic'"),
        (config("cubic", round=3), "has no setting 'round'; it takes begin, end, rounds"),
        (config("cubic", rounds=1), "give at least 2, or schedule: one_shot"),
        (config("cubic", begin=0.5, end=0.5), "0 <= begin < end < 1"),
        (config("mid_training", end=1.0), "begin: 0.25 and end: 1"),
        (config("soft_shrinkage", share=1.5), "'soft_shrinkage' has share: 1.5; give from 0 to 0.99"),
        (config("prune_and_regrow", regrow=-0.1), "'prune_and_regrow' has regrow"),
        (
            config("cubic", ("hidden",)),
            "is not for hidden, which prune.units names; give units among ffn",
        ),
        (config("cubic", ("experts", "heads")), "is not for experts"),
        (config("cubic").model_copy(update={"repair": "bias"}), "give prune.repair: none"),
        (config("prune_and_regrow", ("layers",)), "give units among ffn, kv_groups, heads"),
        (config("prune_and_regrow", ("kv_groups", "heads")), "cannot regrow inside each other"),
        (config("cubic").model_copy(update={"memory": "stream"}), "give memory: whole"),
        (config("cubic").model_copy(update={"target": TargetConfig(latency_ms=5)}), "give latency_ratio"),
    ],
)
def test_what_a_schedule_refuses(given, says):
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        schedule_of(given)


def test_hidden_goes_in_one_shot():
    assert schedule_of(config("one_shot", ("hidden",))) == [Round(0.0, 1.0)]


@pytest.mark.parametrize(
    ("target", "done", "expected"),
    [
        ({"params_ratio": 0.8}, 0.5, {"params_ratio": 0.9}),
        ({"non_embedding_ratio": 0.6}, 0.25, {"non_embedding_ratio": 0.9}),
        ({"latency_ratio": 0.5}, 0.5, {"latency_ratio": 0.75}),
        ({"params": 610}, 0.5, {"params": 810}),
        ({"params": 611}, 0.5, {"params": 810}),
        ({"non_embedding_params": 510}, 0.875, {"non_embedding_params": 560}),
        ({"params_ratio": 0.8}, 1.0, {"params_ratio": 0.8}),
        ({"bytes": 1220}, 0.5, {"bytes": 1620}),  # two bytes a parameter
    ],
)
def test_targets_lie_between_the_dense_size_and_the_last(target, done, expected):
    found = target_at(TargetConfig(**target), done, SHAPE, "bfloat16")
    assert found.model_dump(exclude_none=True) == pytest.approx(expected)


def test_a_number_of_parameters_needs_the_dense_size():
    target = TargetConfig(params=610)
    assert target_at(target, 0.5, None, "bfloat16") == target


def test_a_schedule_is_no_part_of_a_stage_s_settings():
    """One shot finds what was made before there were schedules, and each round is told by its target."""
    plain, scheduled = config("one_shot"), config("cubic", rounds=3)
    for stage in (score, plan, prune):
        assert stage.settings(plain) == stage.settings(scheduled)
        assert "schedule" not in str(stage.settings(plain))


def test_the_average_size_by_hand():
    """100 for a quarter, 60 for a quarter, 40 for the rest: 25 + 15 + 20."""
    assert average_params(100, [(0.25, 60), (0.5, 40)]) == pytest.approx(60.0)
    assert average_params(100, [(0.0, 40)]) == 40.0
    assert average_params(100, [(0.0, 80), (0.75, 40)]) == pytest.approx(70.0)


def test_the_law_by_hand():
    """10^9 parameters, 10^11 tokens: 1.69 + 406.4 / 10^3.06 + 410.7 / 10^3.08."""
    expected = 1.69 + 406.4 / 1148.1536 + 410.7 / 1202.2644
    assert predicted_loss(1e9, 1e11) == pytest.approx(expected, rel=1e-6)
    assert predicted_loss(2e9, 1e11) < predicted_loss(1e9, 1e11)


@pytest.mark.parametrize(
    "case", [(1.3e8, 32_768), (1e9, 4.9e9), (1e9, 5.1e11), (6.9e7, 1e11), (1.7e10, 1e11)]
)
def test_the_law_says_nothing_outside_what_it_was_fitted_to(case):
    """Chinchilla, by its abstract: 70 million to 16 billion parameters, 5 to 500 billion tokens."""
    assert predicted_loss(*case) is None
