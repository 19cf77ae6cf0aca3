"""The pool that a method chooses from, its budget, and what a choice consists of.

A pool may be larger than memory: of its rows only ids and tokens are held, the rest is read from the file
when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job
from resprout.tasks.data.encodings import Encodings
from resprout.tasks.data.template import Encoded, encode_rows, is_cut, no_responses
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.select.rows import FILE, Origin, rows_by_id

ENCODED_AT_ONCE = 2000


class LeftOut(NamedTuple):
    """A row that cannot be chosen: its tokens, why, and where it is from."""

    id: str
    tokens: int
    reason: str
    origin: Origin


@dataclass(frozen=True)
class Pool:
    """Rows in the order of their ids, so that no choice depends on how a file was shuffled.

    `rows`, `ids`, `encoded`, `tokens`, `costs` and `cut` are of equal length and hold the rows that can be
    chosen; `left_out` are those that cannot. `costs` are what each takes of the budget: its tokens, or 1
    where the budget counts rows. `budget` is in that unit, `budget_tokens` what it comes to in tokens. `cut`
    are rows whose answers are longer than fits: they end where max_len_tokens does, without an end token.
    """

    rows: Sequence[dict[str, Any]]
    ids: Sequence[str]
    encoded: Sequence[Encoded]
    tokens: NDArray[np.int64]
    costs: NDArray[np.int64]
    cut: NDArray[np.bool_]
    left_out: Sequence[LeftOut]
    budget: int
    budget_tokens: int


@dataclass(frozen=True)
class Choice:
    """The rows that a method selected, with its decision on each.

    `accepted` are indices into the pool; `facts` gives of a pool row what decided (cluster, jsd, efficiency,
    concepts, reason). `granted` is what of the budget was handed out. `summary` and `metrics` are added to
    what every method reports. `embeddings` are of the pool's rows, where the method has some.
    """

    accepted: list[int]
    facts: Callable[[int], Mapping[str, Any]]
    granted: int
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    embeddings: NDArray[np.floating] | None = None


def read_pool(job: Job[SelectConfig], inputs: Mapping[str, Path]) -> Pool:
    """Rows of rows.jsonl in the tokens of the dense model's tokenizer, and the budget.

    Raises:
        BadInput: no row keeps a response token, or the budget is larger than the pool or smaller than any
        row.
    """
    config, path = job.config, inputs["rows"] / FILE
    everything = rows_by_id(path)
    tokenizer = load_tokenizer(inputs["dense"], job.trust_remote_code)
    kept, ids, cut, left_out = list[int](), list[str](), list[bool](), list[LeftOut]()
    longest_prompt = 0

    def choosable() -> Iterator[Encoded]:
        nonlocal longest_prompt
        seen = set[bytes]()
        for place, (row, one) in enumerate(encoded_in_parts(tokenizer, everything, config)):
            content = _digest(row)
            if not one.response_ids:
                longest_prompt = max(longest_prompt, len(one.prompt_ids))
                why = "no response token left after the template"
                left_out.append(LeftOut(row["id"], len(one), why, Origin.of(row)))
            elif content in seen:
                left_out.append(LeftOut(row["id"], len(one), "the same as another row", Origin.of(row)))
            else:
                seen.add(content)
                kept.append(place)
                ids.append(row["id"])
                cut.append(is_cut(one, config.max_len_tokens, tokenizer.eos_token_id))
                yield one

    encoded = Encodings.of(choosable())
    if not kept:
        raise no_responses(len(everything), longest_prompt, config.max_len_tokens)
    tokens = encoded.lengths
    costs = np.ones_like(tokens) if config.counts_rows else tokens
    budget = _budget(config, costs)
    spent = budget if not config.counts_rows else int(tokens.sum()) * budget // len(tokens)
    rows = everything.of(np.array(kept, dtype=np.int64))
    return Pool(rows, ids, encoded, tokens, costs, np.array(cut), left_out, budget, spent)


def encoded_in_parts(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], config: SelectConfig
) -> Iterator[tuple[Mapping[str, Any], Encoded]]:
    """Each row with its tokens."""
    given = iter(rows)
    while part := list(islice(given, ENCODED_AT_ONCE)):
        yield from zip(
            part,
            encode_rows(tokenizer, part, config.template, config.max_len_tokens, check=False),
            strict=True,
        )


def _digest(row: Mapping[str, Any]) -> bytes:
    content = json.dumps([row["instruction"], row.get("input") or "", row["output"]])
    return blake2b(content.encode(), digest_size=16).digest()


def _budget(config: SelectConfig, costs: NDArray[np.int64]) -> int:
    """The budget in tokens, or in rows where it counts those."""
    held = int(costs.sum())
    unit = "rows" if config.counts_rows else "tokens"
    given = config.budget_rows if config.budget_rows is not None else config.budget_tokens
    # Of the number as it is written: 0.29 of 100 are 29, while the nearest binary fraction gives 28.
    asked = given if given is not None else int(Fraction(str(config.budget_ratio or 0)) * held)
    if asked > held:
        tokens = "" if config.counts_rows else f"{held} tokens in "
        raise BadInput(
            f"select.budget_{unit} is {asked} but the pool holds {tokens}{len(costs)} rows; add rows to "
            "select.pool, or set budget_ratio"
        )
    if asked < costs.min():
        needed = "" if config.counts_rows else f": the shortest takes {costs.min()}"
        raise BadInput(
            f"the budget of {asked} {unit} holds no row{needed}; raise "
            f"{'budget_ratio' if given is None else f'budget_{unit}'}"
        )
    return asked


def fill(order: Iterable[int], costs: Sequence[int] | NDArray[np.int64], budget: int) -> list[int]:
    """Rows taken in `order` while they fit: a row too long for what is left is passed over.

    So the sum is at most `budget`, and no row that was passed over would still fit.
    """
    taken, left = list[int](), budget
    for index in order:
        if costs[index] <= left:
            taken.append(index)
            left -= int(costs[index])
    return taken


def in_order(order: Sequence[int], pool: Pool, taken: str, beyond: str = "beyond the budget") -> Choice:
    """The choice of the rows that fit, in this order, with the reasons `taken` and `beyond`."""
    accepted = fill(order, pool.costs, pool.budget)
    chosen = set(accepted)
    return Choice(
        accepted, lambda index: {"reason": taken if index in chosen else beyond}, granted=pool.budget
    )
