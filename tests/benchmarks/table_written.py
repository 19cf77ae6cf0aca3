"""What models write when they are asked held-out rows, greedily in the Alpaca form: do their answers end?

    python tests/benchmarks/table_written.py ROWS dense=FOLDER random=FOLDER longest=FOLDER ...

ROWS is a file of instruction rows, of which 60 without an input and with a hash below `--hash-percent` are
asked. Prints of each model the share of answers that end, their mean tokens, the share of 4-grams that repeat
one, and chrF to the rows' answers and to those of the first model.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from resprout.configs.schema import RowSource
from resprout.tasks.acquire.rows import instruction_items, taken
from resprout.tasks.data.template import encode_rows
from resprout.tasks.models.generation import end_tokens, left_padded, padding_token
from resprout.tasks.models.load import load_model, load_tokenizer

BATCH = 20


Answer: TypeAlias = tuple[list[int], bool, str]
"""Tokens, whether it ended, and its text."""


@torch.inference_mode()
def written(folder: Path, rows: Sequence[dict[str, Any]], most: int, dtype: str) -> list[Answer]:
    """The answer to each row, of at most so many tokens."""
    tokenizer: Any = load_tokenizer(folder)
    model: Any = load_model(folder, dtype, "cpu").eval()
    pad, ends, found = padding_token(tokenizer), end_tokens(model, tokenizer), list[Answer]()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids, mask = left_padded([one.prompt_ids for one in encode_rows(tokenizer, part, "alpaca", 1024)], pad)
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=most, do_sample=False, pad_token_id=pad
        )
        for row in made[:, ids.shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), None)
            found.append((row[:end], end is not None, tokenizer.decode(row[:end], skip_special_tokens=True)))
    return found


def repeated(tokens: Sequence[int]) -> float:
    """The share of 4-grams that are there a second time or more."""
    grams = list(zip(*(tokens[start:] for start in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def main() -> None:
    from sacrebleu import corpus_chrf

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("models", nargs="+", help="NAME=FOLDER, the dense one first")
    parser.add_argument("--hash-percent", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="after which an answer is cut")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    source = RowSource(
        source=str(args.rows), hash_percent=(0, args.hash_percent), where="not input", limit=60
    )
    items = instruction_items(source, source.source, {args.rows.name: args.rows})
    rows = [item.row for item in taken(items, source, seed=17, unique=True)]
    first: list[str] = []
    for given in args.models:
        name, _, folder = given.partition("=")
        answers = written(Path(folder), rows, args.tokens, args.dtype)
        texts = [text.strip() for _, _, text in answers]
        first = first or texts
        own, dense = (
            corpus_chrf(texts, [wanted]).score for wanted in ([row["output"] for row in rows], first)
        )
        ended = statistics.fmean(end for _, end, _ in answers)
        tokens = statistics.fmean(len(one) for one, _, _ in answers)
        again = statistics.fmean(repeated(one) for one, _, _ in answers)
        print(f"| {name} | {ended:.0%} | {tokens:.0f} | {again:.0%} | {own:.1f} | {dense:.1f} |", flush=True)


if __name__ == "__main__":
    main()
