"""Logits at response positions only: hidden states are gathered before the language head.

With a vocabulary of 50,000 the head's output for a whole batch is larger than the model; prompts and
padding, which no loss or divergence reads, are most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resprout.tasks.data.template import Encoded


class Batch(NamedTuple):
    """Rows padded on the right, and where their response tokens are.

    Shapes: input_ids, attention_mask [rows, longest]; positions, targets, row [response tokens of all rows].
    `positions` are indices into the flattened rows * longest of the token *before* each response token, whose
    hidden state predicts it; `targets` are the response tokens; `row` says whose they are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    row: Tensor

    def to(self, device: str) -> Batch:
        """The same batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self))


def collate(rows: Sequence[Encoded]) -> Batch:
    """One padded batch of rows; a row without prompt tokens does not have its first response token predicted.

    Padding is token 0 behind an attention mask of 0, where no real token looks.
    """
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    positions, targets, owners = list[int](), list[int](), list[int]()
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row.prompt_ids + row.response_ids)
        attention_mask[index, : len(row)] = 1
        start = len(row.prompt_ids)
        skipped = 1 if start == 0 else 0
        positions += range(index * longest + start + skipped - 1, index * longest + len(row) - 1)
        targets += row.response_ids[skipped:]
        owners += [index] * (len(row.response_ids) - skipped)
    return Batch(input_ids, attention_mask, *map(torch.tensor, (positions, targets, owners)))


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states of all positions, flattened: [rows * longest, hidden size]."""
    out = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return out.last_hidden_state.flatten(0, 1)


def response_states(model: Any, batch: Batch) -> Tensor:
    """Hidden states that predict the response tokens: [response tokens, hidden size]."""
    return hidden_states(model, batch)[batch.positions]


def head(model: Any, states: Tensor) -> Tensor:
    """Float32 logits of 2-D hidden states: [tokens, vocabulary]."""
    return narrow_head(model, states).float()


def narrow_head(model: Any, states: Tensor) -> Tensor:
    """The same in the dtype that the head computes in, where no cap is laid on them."""
    logits: Tensor = model.get_output_embeddings()(states)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits.float() / cap)
