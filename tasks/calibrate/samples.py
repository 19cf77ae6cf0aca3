"""Calibration samples, as methods return them, and the windows of text that two methods choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.schema import CalibrateConfig
from resprout.tasks.data.read import JOIN, read_rows
from resprout.tasks.models.load import load_tokenizer


@dataclass(frozen=True)
class Samples:
    """`input_ids` int64 [samples, seq_len_tokens]; `notes` says of each where it is from and why chosen."""

    input_ids: Tensor
    notes: list[dict[str, Any]]


@dataclass(frozen=True)
class Windows:
    """`input_ids` int64 [windows, seq_len_tokens]; window i begins in the 0-based row `documents[i]`."""

    input_ids: NDArray[np.int64]
    documents: NDArray[np.int64]
    sources: list[str]

    def note(self, window: int) -> dict[str, Any]:
        """The source of a window."""
        document = int(self.documents[window])
        return {"window": window, "row": document, "source": self.sources[document]}


def cut(config: CalibrateConfig, inputs: Mapping[str, Path], trust_remote_code: bool = False) -> Windows:
    """Windows of `seq_len_tokens` side by side over all documents of `text`, joined by a blank line.

    Documents are tokenised one by one without special tokens, in the order of text.jsonl; the tokens left
    over at the very end are dropped. A window may run over the border of two documents.
    """
    rows = [row for _, row in read_rows(inputs["text"] / "text.jsonl")]
    tokenizer: Any = load_tokenizer(inputs["model"], trust_remote_code)
    texts = tokenizer([row["text"] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
    border = tokenizer(JOIN, add_special_tokens=False)["input_ids"]
    parts = [ids if index == 0 else [*border, *ids] for index, ids in enumerate(texts)]
    stream = np.fromiter((token for part in parts for token in part), dtype=np.int64)
    ends = np.cumsum([len(part) for part in parts])
    count = len(stream) // config.seq_len_tokens
    starts = np.arange(count) * config.seq_len_tokens
    return Windows(
        stream[: count * config.seq_len_tokens].reshape(count, config.seq_len_tokens),
        np.searchsorted(ends, starts, side="right"),
        [str(row.get("source", "")) for row in rows],
    )


def draw_windows(config: CalibrateConfig, windows: Windows, count: int, seed: int) -> NDArray[np.int64]:
    """Indices of `count` different windows, drawn at random; BadInput where there are too few."""
    held = len(windows.input_ids)
    if held < count:
        fewer = "samples" if config.method == "random" else "samples or candidates_per_sample"
        raise BadInput(
            f"calibrate.text holds {held} windows of {config.seq_len_tokens} tokens, but {config.method} "
            f"needs {count}; add text, or lower seq_len_tokens, {fewer}"
        )
    return np.random.default_rng(seed).permutation(held)[:count].astype(np.int64)


def take(windows: Windows, chosen: NDArray[np.int64], notes: list[dict[str, Any]]) -> Samples:
    """The chosen windows in the order of the text, with what is noted about each."""
    order = np.argsort(chosen)
    picked = [{**windows.note(int(chosen[index])), **notes[index]} for index in order]
    return Samples(torch.from_numpy(windows.input_ids[chosen[order]]), picked)
