"""The tokens with which a text that a model writes is filled up and ended."""

from __future__ import annotations

from typing import Any

from resprout.tasks.models.served import ServedModel


def padding_token(tokenizer: Any) -> int:
    """The id that fills up a batch, of a tokenizer without one that of another token."""
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(one) for one in found if one is not None)


def end_tokens(model: Any, tokenizer: Any = None) -> set[int]:
    """Tokens that end an answer: the model's own, else the tokenizer's, without one those of its config."""
    if isinstance(model, ServedModel):
        return set(model.ends)
    own = None if model.generation_config is None else model.generation_config.eos_token_id
    given = own if own is not None else (model.config if tokenizer is None else tokenizer).eos_token_id
    return {one for one in (given if isinstance(given, list) else [given]) if one is not None}
