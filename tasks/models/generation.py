"""Inputs of text generation: left-padded batches of prompts, padding tokens and end-of-sequence tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resprout.tasks.models.served import ServedModel


def padding_token(tokenizer: Any) -> int:
    """The id that fills up a batch, of a tokenizer without one that of another token."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(one) for one in found if one is not None)


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """A left-padded batch of prompts and its attention mask: int64 [prompts, longest] each."""
    longest = max(1, *map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    return ids, mask


def end_tokens(model: Any, tokenizer: Any = None) -> set[int]:
    """Tokens that end an answer: the model's own, else the tokenizer's, without one those of its config."""
    if isinstance(model, ServedModel):
        return set(model.ends)
    own = None if model.generation_config is None else model.generation_config.eos_token_id
    given = own if own is not None else (model.config if tokenizer is None else tokenizer).eos_token_id
    return {one for one in (given if isinstance(given, list) else [given]) if one is not None}
