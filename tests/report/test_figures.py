"""What the pictures of a report show: scores split into kept and cut, categories, shortened names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from resprout.tasks.evaluate.paired import quantile
from resprout.tasks.report import figures
from resprout.tasks.report.charts import Value
from resprout.tasks.report.figures import split_scores, without_common


def plan(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"layers": list(layers), **more}


def test_scores_are_split_by_the_plan_and_held_against_their_layer() -> None:
    scores = {0: {"ffn": [100.0, 10.0, 1.0]}, 1: {"ffn": [1.0, 2.0, 20.0]}}
    kept, cut, axis = split_scores(scores, plan({"ffn": [0, 1]}, {"ffn": [2]}), "ffn")
    assert kept == pytest.approx([1.0, 0.0, 1.0])
    assert cut == pytest.approx([-1.0, math.log10(0.5), 0.0])
    assert "powers of ten" in axis


def test_scores_of_a_layer_that_is_gone_are_cut() -> None:
    scores = {0: {"layers": [3.0]}, 1: {"layers": [-1.0]}, 2: {"layers": [5.0]}}
    kept, cut, axis = split_scores(scores, plan({"index": 0}, {"index": 2}), "layers")
    assert (kept, cut, axis) == ([3.0, 5.0], [-1.0], "score of the layer")


def test_scores_at_or_below_zero_are_held_against_the_median_by_difference() -> None:
    kept, cut, axis = split_scores({0: {"heads": [-1.0, 0.0, 4.0]}}, plan({"heads": [2]}), "heads")
    assert (kept, cut) == ([4.0], [-1.0, 0.0])
    assert axis == "score - layer's median"


def test_where_a_plan_names_only_a_number_there_is_no_picture() -> None:
    mixture = plan({"ffn": [0], "experts": [0]}, units=["ffn"], criterion="magnitude")
    assert list(figures.unit_scores({0: {"ffn": [1.0, 2.0]}}, mixture)) == []


def test_categories_have_the_mean_of_their_rows_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(at), "category": "prose" if at < 3 else "trivia"} for at in range(5)]
    rows.append({"id": "long", "category": "prose"})
    decisions: list[dict[str, Any]] = [{"id": str(at), "jsd": float(at)} for at in range(5)]
    # Its prompt left no room for an answer.
    decisions.append({"id": "long", "jsd": None})
    seen: dict[str, list[Value]] = {}
    monkeypatch.setattr(figures, "dots", lambda name, title, says, bars, label: seen.update(bars))
    list(figures.category_divergence(decisions, rows))
    assert list(seen) == ["trivia (2)", "prose (3)"]
    (prose,) = seen["prose (3)"]
    reach = quantile(2) * 1 / math.sqrt(3)
    assert prose.value == 1.0
    assert reach > 1, "a divergence is never below zero"
    assert prose.span == pytest.approx((0, 1 + reach))
    assert list(figures.category_divergence(decisions[:3], rows)) == [], "one category is none"


def test_a_map_says_what_was_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 rows one lies in no cluster, 5 were chosen and the 4 behind them not compared."""
    ids = [f"{at:02}" for at in range(16)]
    decisions = [
        {"id": one, "cluster": at % 2, "jsd": None if 5 <= at < 9 else 0.1 * at, "accepted": at < 5}
        for at, one in enumerate(ids)
    ]
    decisions[-1]["cluster"] = -1
    (tmp_path / "decisions.jsonl").write_text("\n".join(json.dumps(one) for one in decisions))
    (tmp_path / figures.MAP_IDS).write_text(json.dumps(ids))
    embeddings = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    save_file({"embeddings": embeddings}, tmp_path / figures.MAP)
    shown: list[Any] = []
    monkeypatch.setattr(figures, "groups", lambda *given: shown.append(given))
    list(figures.rows_on_a_map(tmp_path))
    ((_, _, says, places),) = shown
    assert says.startswith("15 rows")
    assert "4 that were not compared" in says
    assert "the 5 rows chosen" in says
    assert sorted(place.weight for place in places)[-2:] == pytest.approx([13 / 14, 1.0])


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["data/boolq/none/x.arrow", "data/piqa/plain/x.arrow"], ["boolq/none", "piqa/plain"]),
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]),
        (["d/a/x", "d/a/b/x"], ["x", "b/x"]),
        (["alone/x"], ["alone/x"]),
    ],
)
def test_paths_lose_what_they_have_in_common(names: list[str], short: list[str]) -> None:
    assert without_common(names) == short
