"""Bounds on what is lost: absolute, relative, not worse by a margin; of capabilities and of tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.result import GateCheck
from resprout.configs.schema import GateConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.gate.stage import gate

ITEMS = 400


def scores(folder: Path, right: dict[str, int], cut: float | None = None) -> Path:
    """Scores of tasks of which the first so many items are answered right."""
    folder.mkdir()
    about = {
        name: {
            "capability": "arithmetic" if name != "facts" else "knowledge",
            "headline": f"{name}_acc",
            "items": ITEMS,
        }
        for name in right
    }
    details = {"perplexity": {"metric": "p", "kl_metric": "k"}, "tasks": about}
    values = {f"{name}_acc": [1.0] * count + [0.0] * (ITEMS - count) for name, count in right.items()}
    metrics = {"p": 1.0, "params": 1.0} | ({"sums_cut": cut} if cut is not None else {})
    (folder / "details.json").write_text(json.dumps(details))
    (folder / "samples.json").write_text(json.dumps({"windows": [], "right": values}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def held(tmp_path: Path, max_drop: dict[str, Any]) -> dict[str, Any]:
    dense = scores(tmp_path / "dense", {"sums": 300, "products": 200, "facts": 100})
    final = scores(tmp_path / "final", {"sums": 288, "products": 192, "facts": 100})
    (tmp_path / "out").mkdir()
    job = Job(GateConfig.model_validate({"max_drop": max_drop}))
    gate.body(job, {"dense": dense, "final": final}, tmp_path / "out", silent)
    return json.loads((tmp_path / "out" / "gate.json").read_text())


@pytest.mark.parametrize(
    ("name", "bound", "value", "passed", "items"),
    [
        ("sums", 0.03, 0.03, True, 400),  # 300 - 288 of 400
        ("sums", 0.0299, 0.03, False, 400),
        ("arithmetic", 0.025, 0.025, True, 800),  # 20 of 800
        ("arithmetic", {"relative": 0.04}, 0.04, True, 800),  # 20 of 500
        ("arithmetic", {"relative": 0.0399}, 0.04, False, 800),
        ("knowledge", 0.0, 0.0, True, 400),
        # No item changed sides: the bound is z^2 / (n + z^2) = 2.7055 / 402.7055.
        ("knowledge", {"margin": 0.0068}, 0.006718, True, 400),
        ("knowledge", {"margin": 0.0067}, 0.006718, False, 400),
        ("knowledge", {"margin": 0.0067, "error_rate": 0.1}, 0.004089, True, 400),
    ],
)
def test_each_form_of_a_bound(
    name: str, bound: Any, value: float, passed: bool, items: int, tmp_path: Path
) -> None:
    verdict = held(tmp_path, {name: bound})
    (one,) = verdict["checks"]
    assert one["name"] == f"max_drop.{name}"
    assert one["value"] == pytest.approx(value, rel=1e-3, abs=1e-12)
    assert (one["passed"], verdict["passed"], one["items"]) == (passed, passed, items)


@pytest.mark.parametrize(("margin", "passed"), [(0.05, True), (0.03, False)])
def test_a_check_says_what_lies_behind_it(margin: float, passed: bool, tmp_path: Path) -> None:
    (one,) = held(tmp_path, {"arithmetic": {"margin": margin}})["checks"]
    assert one["note"] == "0.625 -> 0.600 of 800 items, 20 lost, 0 won, error rate 0.05"
    assert 0.025 < one["value"] < 0.05
    only = "" if passed else "only "
    assert GateCheck.model_validate(one).text == (
        f"max_drop.arithmetic: drop 0.025, shown {only}to be below {one['value']:.3g} (margin {margin})"
    )


def test_other_bounds_are_held_against_the_value(tmp_path: Path) -> None:
    (one,) = held(tmp_path, {"sums": 0.0299})["checks"]
    assert GateCheck.model_validate(one).text == "max_drop.sums 0.0300 (bound 0.0299)"


def test_a_bound_on_what_was_not_evaluated_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"names code, which was not evaluated; give one of arithmetic, fac"):
        held(tmp_path, {"code": 0.1})
