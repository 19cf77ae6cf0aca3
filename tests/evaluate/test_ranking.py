"""Ranking: nDCG by hand, each pair in both orders, and the whole way through the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import WHOLE, silent
from resprout.tasks.evaluate.answers import accuracies, answers, by_items, rows
from resprout.tasks.evaluate.ranking import by_query, entry
from resprout.tasks.evaluate.task import Asked, all_asked, count_items
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import write_tiny_folder
from tiny_run import words

ROWS = [
    {
        "qid": query, "query": words(3, query), "docid": f"d{at}", "text": words(4, 10 * query + at),
        "relevance": gain,
    }
    for query, gains in enumerate(([2, 0, 1], [0, 0], [1], [0, 1]))
    for at, gain in enumerate(gains)
]  # fmt: skip


def row(name: str, gain: int, query: str = "q") -> dict[str, Any]:
    return {"qid": query, "query": "what", "docid": name, "relevance": gain}


def test_ndcg_by_hand() -> None:
    # Order b, c, a: gains 0, 1, 2 at ranks 1, 2, 3; the best order is 2, 1, 0.
    found = [
        entry(row(name, gain), [worth, 0.0])
        for name, gain, worth in (("a", 2, -1.0), ("b", 0, 3.0), ("c", 1, 1.0))
    ]
    items, values = by_query(found)
    expected = (1 / math.log2(3) + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
    assert values == pytest.approx([expected])
    assert items == [{"prompt": "what", "target": "a c b", "answer": "b c a"}]


def test_queries_that_cannot_be_ordered_are_left_out() -> None:
    found = [
        entry(row("a", 1, "alone"), [0.0, 0.0]),
        *(entry(row(one, 0, "none"), [0.0, 0.0]) for one in "ab"),
    ]
    assert by_query(found) == ([], [])


def test_pairs_count_wins_of_both_orders() -> None:
    def pair(a: str, b: str, margin: float) -> dict[str, Any]:
        gains = {"x": 1, "y": 0, "z": 0}
        given = {"docid_a": a, "docid_b": b, "relevance_a": gains[a], "relevance_b": gains[b]}
        return entry({"qid": 1, "query": "what", **given}, [margin, 0.0])

    found = [
        pair("x", "y", 1),
        pair("y", "x", -1),
        pair("x", "z", -1),
        pair("z", "x", -1),
        pair("y", "z", 1),
        pair("z", "y", 0),
    ]
    items, values = by_query(found)
    # x wins 3, y 1, z 1.
    assert items[0]["answer"].split()[0] == "x"
    assert values == [1.0]


@pytest.fixture
def ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, list[dict[str, Any]]], list[Asked]]:
    """The shipped task of a name over rows, as acquired."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def asked(name: str, given: list[dict[str, Any]]) -> list[Asked]:
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        (folder / "task.json").write_text(json.dumps(read_task(name, tmp_path)))
        (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
        config = EvaluateConfig.model_validate(
            {
                "perplexity": {"text": [{"source": "x"}]},
                "suites": [{"tasks": [{"task": name, "data": {"source": "x"}}]}],
            }
        )
        return all_asked(config.placed_suites, {f"task_{name}": folder})

    return asked


BOTH = pytest.mark.parametrize("name", ["rank_pointwise", "rank_pairwise"])


@BOTH
def test_rows_are_tried_when_they_are_counted(name: str, ask: Callable[..., list[Asked]]) -> None:
    for gain in ("high", None, "nan"):
        rows = [ROWS[0], ROWS[1] | {"relevance": gain}]
        with pytest.raises(
            BadInput, match=r"row 2 has (relevance '(high|nan)', which is no|no relevance; gi)"
        ):
            count_items(*ask(name, rows))
    with pytest.raises(BadInput, match="row 1 has no docid; give rows with qid, query, docid, text, relevan"):
        count_items(*ask(name, [{key: value for key, value in ROWS[0].items() if key != "docid"}]))


@BOTH
def test_relevance_below_zero_is_none_and_numbers_may_be_text(
    name: str, ask: Callable[..., list[Asked]]
) -> None:
    found = []
    for gains in ((0, 0, 2), (-2, 0, 2), ("-2", "0", "2")):
        (one,) = ask(name, [row | {"relevance": gain} for row, gain in zip(ROWS, gains, strict=False)])
        assert count_items(one) == (3 if name == "rank_pointwise" else 6)
        made = one.made()
        docs = list(made.eval_docs)
        entries = [entry(row, [float(at), 0.0]) for at, row in enumerate(docs)]
        found.append(([made.doc_to_target(row) for row in docs], by_query(entries)[1]))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0][0])) == 2
    assert entry(row("a", -2), [0.0, 0.0])["passages"] == [["a", 0.0, 0.0]]


@BOTH
def test_the_whole_way(name: str, tmp_path: Path, ask: Callable[..., list[Asked]]) -> None:
    tasks = ask(name, ROWS)
    assert count_items(tasks[0]) == (8 if name == "rank_pointwise" else 10)
    assert not tasks[0].averaged
    model = write_tiny_folder(tmp_path / "model")
    found = answers(load_model(model, "float32", "cpu"), load_tokenizer(model), tasks, 17, WHOLE, silent)
    counted = by_items(found, tasks)
    assert len(counted[name].right["ndcg_10"]) == 2, "one query has one passage, one no relevant one"
    assert 0 < accuracies(counted)[f"{name}_ndcg_10"] <= 1
    listed = list(rows(counted))
    assert [one["prompt"] for one in listed] == [words(3, 0), words(3, 3)]
    assert sorted(listed[0]["answer"].split()) == ["d0", "d1", "d2"]
    assert listed[0]["target"] == "d0 d2 d1"
    none = [item | {"ranked": {**item["ranked"], "passages": []}} for item in found[name].items]
    found[name].items = none
    with pytest.raises(BadInput, match="no query with two passages of which one is relevant"):
        by_items(found, tasks)
