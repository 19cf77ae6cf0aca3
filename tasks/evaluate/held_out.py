"""The held-out text in the tokens that perplexity is computed on; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import PerplexityConfig


def held_out(folder: Path, tokenizer: Any, config: PerplexityConfig) -> tuple[list[int], int | None]:
    """The joined text as token ids, without special tokens, cut to the limit, and the BOS id asked for.

    Raises:
        BadInput: the text does not fill one window, or the tokenizer has no BOS token.
    """
    bos: int | None = tokenizer.bos_token_id if config.bos else None
    if config.bos and bos is None:
        raise BadInput("evaluate.perplexity.bos is true but the tokenizer has no BOS token; set it to false")
    documents = [
        json.loads(line)["text"]
        for line in (folder / "text.jsonl").read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    limit = config.limit_tokens
    if limit is not None:
        # No tokenizer makes more than one token of a character or so; 12 a token bounds the text that is
        # needed.
        kept, characters = [], 0
        for document in documents:
            kept.append(document)
            characters += len(document)
            if characters > 12 * limit:
                break
        documents = kept
    ids: list[int] = tokenizer(config.join.join(documents), add_special_tokens=False)["input_ids"]
    ids = ids[:limit] if limit is not None else ids
    if len(ids) < config.window_tokens:
        raise BadInput(
            f"evaluate.perplexity.text has {len(ids)} tokens, fewer than one window of "
            f"{config.window_tokens}; give more text or a smaller window_tokens"
        )
    return ids, bos
