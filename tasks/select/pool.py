"""The pool that a method chooses from, its budget in tokens, and what a choice consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job
from resprout.tasks.data.read import read_rows
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models.load import load_tokenizer


@dataclass(frozen=True)
class Pool:
    """Rows in the order of their ids, so that no choice depends on how a file was shuffled.

    `rows`, `encoded`, `tokens` are of equal length and hold the rows that can be chosen; `left_out` are (row,
    tokens, reason) of those that cannot. `budget` is the number of tokens asked for.
    """

    rows: list[dict[str, Any]]
    encoded: list[Encoded]
    tokens: NDArray[np.int64]
    left_out: list[tuple[dict[str, Any], int, str]]
    budget: int


@dataclass(frozen=True)
class Choice:
    """The rows that a method selected, with its decision on each.

    `accepted` are indices into the pool; `facts` holds for each pool row what decided (cluster, jsd, ies,
    concepts, reason); `summary` and `metrics` are added to what every method reports.
    """

    accepted: list[int]
    facts: list[dict[str, Any]]
    granted: int
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_pool(job: Job[SelectConfig], inputs: Mapping[str, Path]) -> Pool:
    """Rows of rows.jsonl in the tokens of the dense model's tokenizer, and the budget in tokens.

    Raises:
        BadInput: no row keeps a response token, or the budget is larger than the pool or smaller than any
        row.
    """
    config = job.config
    rows = sorted((row for _, row in read_rows(inputs["rows"] / "rows.jsonl")), key=lambda row: row["id"])
    tokenizer = load_tokenizer(inputs["dense"], job.trust_remote_code)
    encoded = encode_rows(tokenizer, rows, config.template, config.max_len_tokens)
    seen, kept, left_out = set[tuple[str, str, str]](), list[int](), list[tuple[dict[str, Any], int, str]]()
    for index, row in enumerate(rows):
        content = (row["instruction"], row.get("input") or "", row["output"])
        if not encoded[index].response_ids:
            left_out.append((row, len(encoded[index]), "no response token left after the template"))
        elif content in seen:
            left_out.append((row, len(encoded[index]), "the same as another row"))
        else:
            seen.add(content)
            kept.append(index)
    tokens = np.array([len(encoded[index]) for index in kept], dtype=np.int64)
    budget = _budget(config, tokens)
    return Pool([rows[index] for index in kept], [encoded[index] for index in kept], tokens, left_out, budget)


def _budget(config: SelectConfig, tokens: NDArray[np.int64]) -> int:
    held = int(tokens.sum())
    asked = (
        config.budget_tokens if config.budget_tokens is not None else int((config.budget_ratio or 0) * held)
    )
    if asked > held:
        raise BadInput(
            f"select.budget_tokens is {asked} but the pool holds {held} tokens in {len(tokens)} rows; add "
            "rows to select.pool, or set budget_ratio"
        )
    if asked < tokens.min():
        raise BadInput(
            f"the budget of {asked} tokens holds no row: the shortest takes {tokens.min()}; raise "
            f"{'budget_tokens' if config.budget_tokens is not None else 'budget_ratio'}"
        )
    return asked


def fill(order: Iterable[int], tokens: Sequence[int] | NDArray[np.int64], budget: int) -> list[int]:
    """Rows taken in `order` while they fit: a row too long for what is left is passed over.

    So the sum is at most `budget`, and no row that was passed over would still fit.
    """
    taken, left = list[int](), budget
    for index in order:
        if tokens[index] <= left:
            taken.append(index)
            left -= int(tokens[index])
    return taken
