"""Ranking by prompting: how well a model orders the passages of a query, as nDCG@10 of each query.

Rows are those of a TREC run with texts: qid, query, docid, text, relevance. Pointwise, a passage is worth how
much likelier "yes" is than "no" (arXiv 2211.09110); pairwise, it is worth the passages that it
beats, each pair asked in both orders (arXiv 2306.17563). nDCG is scikit-learn's, with the relevance as gain;
below 0, as TREC judges spam, a passage is worth no more than one that is not relevant.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput

COLUMNS = ("qid", "query", "docid", "text", "relevance")
CUTOFF = 10
METRIC = f"ndcg_{CUTOFF}"
POINTWISE, PAIRWISE = "pointwise", "pairwise"
SHOWN = 10
"""Passages that are named of each order."""


def ranking_of(settings: Mapping[str, Any]) -> str | None:
    """How a task ranks, as `metadata.ranking` of its YAML says; None of one that does not."""
    metadata = settings.get("metadata")
    return metadata.get("ranking") if isinstance(metadata, Mapping) else None


def check_rows(name: str, path: Path) -> None:
    """Raise BadInput where a row of the task lacks a column, or has a relevance that is no number."""
    with path.open(encoding="utf-8") as lines:
        for number, row in enumerate(map(json.loads, lines), 1):
            if lacking := [one for one in COLUMNS if row.get(one) is None]:
                raise BadInput(
                    f"evaluation task {name}: row {number} has no {', '.join(lacking)}; give rows with "
                    f"{', '.join(COLUMNS)}"
                )
            try:
                gain(row["relevance"])
            except (TypeError, ValueError):
                raise BadInput(
                    f"evaluation task {name}: row {number} has relevance {row['relevance']!r}, which is no "
                    "number; give 0 for a passage that is not relevant, more for one that is"
                ) from None


def gain(relevance: Any) -> float:
    """The relevance as a number, none below 0; what is no number raises ValueError or TypeError."""
    found = float(relevance)
    if not math.isfinite(found):
        raise ValueError(relevance)
    return max(0.0, found)


def graded(rows: Any) -> Any:
    """The data set with each relevance as a gain."""
    from datasets import Dataset

    return Dataset.from_list([{**row, "relevance": gain(row["relevance"])} for row in rows])


def pairs(rows: Any) -> Any:
    """A data set with a row for each two passages of a query in each order: text_a, text_b, docid_a, ..."""
    from datasets import Dataset

    return Dataset.from_list(list(paired(graded(rows))))


def paired(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of `pairs`."""
    by_query: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(str(row["qid"]), []).append(row)
    for found in by_query.values():
        for one, other in itertools.permutations(found, 2):
            yield {
                "qid": one["qid"], "query": one["query"],
                **{f"{name}_a": one[name] for name in ("docid", "text", "relevance")},
                **{f"{name}_b": other[name] for name in ("docid", "text", "relevance")},
            }  # fmt: skip


def entry(row: Mapping[str, Any], scores: Sequence[float]) -> dict[str, Any]:
    """What an answered row says of its passages: each with its gain and with what it wins."""
    margin = scores[0] - scores[1]
    if "docid" in row:
        passages = [(row["docid"], row["relevance"], margin)]
    else:
        won = {"a": margin > 0, "b": margin < 0}
        passages = [(row[f"docid_{one}"], row[f"relevance_{one}"], won[one]) for one in won]
    return {
        "qid": str(row["qid"]),
        "query": row["query"],
        "passages": [[str(name), gain(relevance), float(won)] for name, relevance, won in passages],
    }


def by_query(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """The queries as items, and nDCG of each; not those of one passage, or without a relevant one."""
    from sklearn.metrics import ndcg_score

    found: dict[str, dict[str, list[float]]] = {}
    queries: dict[str, str] = {}
    for one in entries:
        queries[one["qid"]] = one["query"]
        for name, gain, won in one["passages"]:
            passage = found.setdefault(one["qid"], {}).setdefault(name, [gain, 0.0])
            passage[1] += won
    items, values = [], []
    for qid, passages in found.items():
        gains, worth = ([one[part] for one in passages.values()] for part in (0, 1))
        if len(gains) > 1 and max(gains) > 0:
            values.append(float(ndcg_score([gains], [worth], k=CUTOFF)))
            orders = [
                " ".join(sorted(passages, key=lambda name: -passages[name][part])[:SHOWN]) for part in (0, 1)
            ]
            items.append({"prompt": queries[qid], "target": orders[0], "answer": orders[1]})
    return items, values
