"""The gate: each bound by hand, on both sides."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import GateConfig, GateOfRung
from resprout.tasks.core.job import Job, silent
from resprout.tasks.gate.stage import check, gate

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
        ("max_file_ratio", 0.8, 0.8, True),  # 160 / 200
        ("max_file_ratio", 0.79, 0.8, False),
        ("max_params_ratio", 0.9, 0.9, True),
        ("max_params_ratio", 0.89, 0.9, False),
    ],
)
def test_each_bound(bound: str, limit: float, value: float, passed: bool) -> None:
    verdict = check(GateConfig(**{bound: limit}), DENSE, {**FINAL, "bytes": 160.0}, PROTOCOL, 200.0)
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


def test_before_a_rung_figures_and_bounds_leave_no_trace(tmp_path: Path) -> None:
    """So the training behind it is found again where other sets and bounds come to the same verdict."""

    def written(name: str, bound: float, ppl: float) -> dict[str, bytes]:
        folders = {role: tmp_path / name / role for role in ("dense", "final", "out")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        (folders["dense"] / "metrics.json").write_text(json.dumps(DENSE))
        (folders["final"] / "metrics.json").write_text(json.dumps({**FINAL, "t_ppl_seq8": ppl}))
        (folders["final"] / "details.json").write_text(json.dumps({"perplexity": PROTOCOL}))
        out = folders.pop("out")
        gate.body(Job(GateOfRung(max_perplexity_ratio=bound)), folders, out, silent)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    failed = written("first", 1.1, 23.0)
    assert not json.loads(failed["gate.json"])["passed"]
    assert written("second", 1.2, 25.0) == failed
    assert written("third", 1.2, 23.0) != failed
