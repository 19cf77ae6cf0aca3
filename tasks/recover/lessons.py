"""What a recovery method is given and what it returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs.schema import RecoverConfig
from resprout.tasks.data.batches import by_tokens, padding_share
from resprout.tasks.data.read import read_rows
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models.load import load_tokenizer


@dataclass(frozen=True)
class Lessons:
    """Rows as tokens and the batches of all steps: `batches[s]` are the indices of step s."""

    rows: list[Encoded]
    batches: list[list[int]]

    @property
    def padding(self) -> float:
        """Share of padding among the positions that are computed."""
        return padding_share([len(row) for row in self.rows], self.batches)

    @property
    def tokens(self) -> int:
        """Tokens of all steps, padding not counted."""
        return sum(len(self.rows[index]) for batch in self.batches for index in batch)


@dataclass
class Recovered:
    """The trained model in its storage dtype, one entry a step, and numbers about the whole."""

    model: Any
    history: list[dict[str, float]]
    metrics: dict[str, float] = field(default_factory=dict)


def prepare(config: RecoverConfig, inputs: Mapping[str, Path], seed: int) -> Lessons:
    """The selected rows in the tokens that they were selected by, in batches for all steps.

    Steps = ceil(epochs * requested tokens / batch_tokens): the budget that was asked for decides, not what
    a method filled, so that all selection methods train for the same number of steps.

    Raises:
        BadInput: the pruned model's tokenizer leaves no response token of any row.
    """
    rows = [row for _, row in read_rows(inputs["selection"] / "selected.jsonl")]
    summary = json.loads((inputs["selection"] / "summary.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(inputs["pruned"])
    encoded = encode_rows(tokenizer, rows, summary["template"], summary["max_len_tokens"])
    encoded = [row for row in encoded if row.response_ids]
    steps = math.ceil(config.epochs * summary["requested_tokens"] / config.batch_tokens)
    lengths = [len(row) for row in encoded]
    return Lessons(encoded, by_tokens(lengths, config.batch_tokens, max(1, steps), seed))
