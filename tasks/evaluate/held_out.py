"""The held-out text in the tokens that perplexity is computed on; imports no torch."""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from resprout.configs.errors import BadInput
from resprout.configs.schema import PerplexityConfig


class HeldOut(NamedTuple):
    """Token ids of the joined text, the BOS id asked for, and where the tokens are from.

    `owners` is the number of each token's source among `sources`, by which scores are told apart; empty where
    all text is from one. `text_bytes` are those of the text that the tokens stand for, in UTF-8.
    """

    ids: list[int]
    bos: int | None
    sources: list[str]
    owners: list[int]
    text_bytes: int


def held_out(folder: Path, tokenizer: Any, config: PerplexityConfig) -> HeldOut:
    """The joined text as tokens, without special ones, cut to the limit.

    Raises:
        BadInput: the text does not fill one window, or the tokenizer has no BOS token.
    """
    bos: int | None = tokenizer.bos_token_id if config.bos else None
    if config.bos and bos is None:
        raise BadInput("evaluate.perplexity.bos is true but the tokenizer has no BOS token; set it to false")
    rows = [
        json.loads(line)
        for line in (folder / "text.jsonl").read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    limit = config.limit_tokens
    if limit is not None:
        # No tokenizer makes more than one token of a character or so; 12 a token bounds the text that is
        # needed.
        kept, characters = [], 0
        for row in rows:
            kept.append(row)
            characters += len(row["text"])
            if characters > 12 * limit:
                break
        rows = kept
    sources = list(dict.fromkeys(row.get("source", "") for row in rows))
    text = config.join.join(row["text"] for row in rows)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids: list[int] = read["input_ids"][:limit]
    offsets = read["offset_mapping"][:limit] if tokenizer.is_fast else []
    owners = _owners(rows, len(config.join), sources, offsets) if offsets and len(sources) > 1 else []
    covered = text[: offsets[-1][1]] if offsets else tokenizer.decode(ids)
    if len(ids) < config.window_tokens:
        raise BadInput(
            f"evaluate.perplexity.text has {len(ids)} tokens, fewer than one window of "
            f"{config.window_tokens}; give more text or a smaller window_tokens"
        )
    return HeldOut(ids, bos, sources, owners, len(covered.encode()))


def _owners(
    rows: list[dict[str, Any]], gap: int, sources: list[str], offsets: list[tuple[int, int]]
) -> list[int]:
    """The source of each token, by where in the joined text it begins; a separator is its document's."""
    ends = list(accumulate(len(row["text"]) + gap for row in rows))
    numbers = [sources.index(row.get("source", "")) for row in rows]
    return [numbers[min(bisect_right(ends, begin), len(rows) - 1)] for begin, _ in offsets]
