"""The gate: each bound by hand, on both sides."""

from __future__ import annotations

import math

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import GateConfig
from resprout.tasks.gate.stage import check

PROTOCOL = {"metric": "t_ppl_seq8", "kl_metric": "t_kl_to_dense_seq8"}
DENSE = {"t_ppl_seq8": 20.0, "zero_shot_mean_acc": 0.5, "params": 100.0}
FINAL = {"t_ppl_seq8": 23.0, "t_kl_to_dense_seq8": 0.1, "zero_shot_mean_acc": 0.45, "params": 90.0}


@pytest.mark.parametrize(
    ("bound", "limit", "value", "passed"),
    [
        ("max_perplexity_ratio", 1.15, 1.15, True),  # 23 / 20
        ("max_perplexity_ratio", 1.14, 1.15, False),
        ("max_kl_nats", 0.1, 0.1, True),
        ("max_kl_nats", 0.09, 0.1, False),
        ("min_accuracy_kept", 0.9, 0.9, True),  # 0.45 / 0.5
        ("min_accuracy_kept", 0.91, 0.9, False),
        ("max_params_ratio", 0.9, 0.9, True),
        ("max_params_ratio", 0.89, 0.9, False),
    ],
)
def test_each_bound(bound: str, limit: float, value: float, passed: bool) -> None:
    verdict = check(GateConfig(**{bound: limit}), DENSE, FINAL, PROTOCOL)
    (one,) = verdict.checks
    assert one.value == pytest.approx(value)
    assert (one.passed, verdict.passed) == (passed, passed)


def test_one_bound_outside_fails_all() -> None:
    verdict = check(GateConfig(max_perplexity_ratio=2.0, max_kl_nats=0.01), DENSE, FINAL, PROTOCOL)
    assert [one.passed for one in verdict.checks] == [True, False]
    assert not verdict.passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_never_pass(value: float) -> None:
    verdict = check(GateConfig(max_perplexity_ratio=2.0), DENSE, {**FINAL, "t_ppl_seq8": value}, PROTOCOL)
    assert not verdict.passed


def test_a_missing_score_is_named() -> None:
    with pytest.raises(BadInput, match="max_kl_nats cannot be computed"):
        check(GateConfig(max_kl_nats=0.1), DENSE, {"t_ppl_seq8": 1.0}, PROTOCOL)
