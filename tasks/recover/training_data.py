"""Training batches of a recovery method, and the trained model that it returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from resprout.configs.schema import RecoverConfig
from resprout.tasks.data.batches import by_area, by_tokens, padding_share
from resprout.tasks.data.read import read_rows
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models.load import load_tokenizer

PARTS = 2
"""A part has at most 1 / PARTS of a step's tokens, padding included; small parts pad less."""


@dataclass(frozen=True)
class TrainingData:
    """Rows as tokens and the batches of all steps.

    `batches[s]` are the parts of step s, each a list of rows of like length that are computed side by
    side; the loss is the mean over all parts of a step. Of a part of a recovery `before` steps came first,
    of `whole` in all.
    """

    rows: list[Encoded]
    batches: list[list[list[int]]]
    before: int
    whole: int

    @property
    def padding(self) -> float:
        """Share of padding among the positions that are computed."""
        return padding_share(
            [len(row) for row in self.rows], [part for step in self.batches for part in step]
        )

    @property
    def tokens(self) -> int:
        """Tokens of all steps, padding not counted."""
        return sum(len(self.rows[index]) for step in self.batches for part in step for index in part)


class Adapter(NamedTuple):
    """What a recovery added to the pruned model: peft's config as plain data, and its tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Recovered:
    """The trained model in its storage dtype, one entry a step, and numbers about the whole.

    `adapter` is there where the model is the pruned one with an adapter merged into it.
    """

    model: Any
    history: list[dict[str, float]]
    metrics: dict[str, float] = field(default_factory=dict)
    adapter: Adapter | None = None


def prepare(
    config: RecoverConfig, inputs: Mapping[str, Path], seed: int, trust_remote_code: bool = False
) -> TrainingData:
    """The selected rows in the tokens that they were selected by, in batches for all steps.

    Steps = ceil(epochs * requested tokens / batch_tokens): the budget that was asked for decides, not what
    a method filled, so that all selection methods train for the same number of steps. Of a part of a
    recovery the batches are its share of the whole's, in their order.

    Raises:
        BadInput: the pruned model's tokenizer leaves no response token of any row.
    """
    rows = [row for _, row in read_rows(inputs["selection"] / "selected.jsonl")]
    summary = json.loads((inputs["selection"] / "summary.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(inputs["pruned"], trust_remote_code)
    encoded = encode_rows(tokenizer, rows, summary["template"], summary["max_len_tokens"])
    encoded = [row for row in encoded if row.response_ids]
    steps = max(1, math.ceil(config.epochs * summary["requested_tokens"] / config.batch_tokens))
    lengths = [len(row) for row in encoded]
    batches = by_tokens(lengths, config.batch_tokens, steps, seed)
    begin, end = (round(share * steps) for share in config.part)
    # A share of less than a step trains for the one that it begins with.
    begin = min(begin, steps - 1)
    batches = batches[begin : max(end, begin + 1)]
    parts = [_parts(batch, lengths, config.batch_tokens) for batch in batches]
    return TrainingData(encoded, parts, begin, steps)


def _parts(batch: list[int], lengths: list[int], batch_tokens: int) -> list[list[int]]:
    split = by_area([lengths[index] for index in batch], max(1, batch_tokens // PARTS))
    return [[batch[place] for place in part] for part in split]
