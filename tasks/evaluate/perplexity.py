"""Perplexity in a stated protocol, and KL divergence from a reference model on the same windows.

Perplexity of a corpus = exp(mean negative log-likelihood of its tokens, in nats). The protocol is: documents
joined by a fixed string and tokenised as one text without special tokens; windows of `window` tokens every
`stride` tokens; each token is scored once, in the first window that holds it, given the tokens before it in
that window. The first token of the text (and of each window where windows do not overlap) has no context and
is scored only behind a BOS token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from resprout.tasks.core.job import WHOLE, Progress, Share
from resprout.tasks.data.response import head
from resprout.tasks.evaluate.layers import LayerPairs

BATCH_TOKENS = 2048
CHUNK_ROWS = 128


@dataclass(frozen=True)
class Window:
    """Token ids of one window, the first position whose token it scores, and where each token is from."""

    ids: tuple[int, ...]
    first: int
    sources: tuple[int, ...] = ()
    """Number of the source of each of the ids; empty where all are from one."""


@dataclass(frozen=True)
class Score:
    """Sums over scored tokens; `kl` is None where there was no reference."""

    nll: float
    tokens: int
    kl: float | None = None
    kl_tokens: int = 0

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood; infinite where it overflows."""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    def bits_per_byte(self, token_bytes: float) -> float:
        """Mean bits a byte of text of which a token has so many bytes: the same whatever the tokenizer."""
        return self.nll / math.log(2) / (self.tokens * token_bytes)

    @property
    def mean_kl(self) -> float:
        """Mean KL(reference || model) in nats a token."""
        if self.kl is None or not self.kl_tokens:
            raise ValueError("no reference model was given")
        return self.kl / self.kl_tokens


def windows(
    ids: Sequence[int], window: int, stride: int, bos: int | None, sources: Sequence[int] = ()
) -> list[Window]:
    """Windows over `ids`; each token is scored in exactly one of them (see the module's text)."""
    found = []
    scored_until = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        body = tuple(ids[begin:end])
        head = () if bos is None else (bos,)
        first = scored_until - begin + len(head)
        # Without BOS a window's first token has nothing before it.
        first = max(first, 1)
        if first < len(head) + len(body):
            found.append(
                Window(
                    head + body,
                    first,
                    tuple([*sources[begin:end][:1]] * len(head)) + tuple(sources[begin:end]),
                )
            )
        scored_until = end
        if end == len(ids):
            break
    return found


class Segment(NamedTuple):
    """Sums over the scored tokens of one window that are from one source; `kl` is over `compared` of them."""

    window: int
    source: int
    nll: float
    tokens: int
    kl: float
    compared: int


@dataclass
class Scored:
    """Segments in the order of the windows, and distances of the layers for each batch that was compared."""

    segments: list[Segment] = field(default_factory=list)
    layers: list[list[float]] = field(default_factory=list)


def score(
    model: PreTrainedModel,
    parts: Sequence[Window],
    reference: PreTrainedModel | None = None,
    kl_tokens: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Negative log-likelihood of all windows, and KL(reference || model) on the first `kl_tokens` of them."""
    found = scored(model, parts, reference, kl_tokens, WHOLE, progress)
    return total(found.segments, compared=reference is not None)


def total(parts: Iterable[Segment], compared: bool) -> Score:
    """The score of all segments, added in their order, so that it does not depend on who made which."""
    nll, tokens, kl, kl_tokens = 0.0, 0, 0.0, 0
    for part in parts:
        nll, tokens = nll + part.nll, tokens + part.tokens
        if part.compared:
            kl, kl_tokens = kl + part.kl, kl_tokens + part.compared
    return Score(nll, tokens, kl if compared else None, kl_tokens)


@torch.inference_mode()
def scored(
    model: PreTrainedModel,
    parts: Sequence[Window],
    reference: PreTrainedModel | None,
    kl_tokens: int | None,
    share: Share,
    progress: Progress | None = None,
    layers: LayerPairs | None = None,
) -> Scored:
    """Sums over the windows of the share's batches, and distances of `layers` on a window of each.

    Logits are float32 from here on and handled `CHUNK_ROWS` positions at a time.
    """
    found, batches = Scored(), _batches(parts)
    mine = share.of(len(batches))
    before = sum(_scored(batch) for batch in batches[: mine.start])
    window = sum(map(len, batches[: mine.start]))
    done, todo = 0, sum(len(batches[index]) for index in mine)
    for batch in (batches[index] for index in mine):
        ids = torch.tensor([part.ids for part in batch], device=model.device)
        mask = torch.zeros(ids.shape[0], ids.shape[1] - 1, dtype=torch.bool, device=model.device)
        for row, part in enumerate(batch):
            mask[row, part.first - 1 :] = True
        targets = ids[:, 1:][mask]
        room = len(targets) if kl_tokens is None else max(0, min(len(targets), kl_tokens - before))
        others: torch.Tensor | None = None
        with ExitStack() as watching:
            if layers is not None and room:
                found.layers.append(watching.enter_context(layers.watched()))
            if reference is not None and room:
                others = _states(reference, ids)[mask][:room]
            states = _states(model, ids)[mask]
        nll, kl = [], []
        for start in range(0, len(targets), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = head(model, states[rows])
            picked = logits.gather(1, targets[rows, None])[:, 0]
            nll += (logits.logsumexp(-1) - picked).double().tolist()
            if reference is not None and others is not None and start < room:
                logq = head(reference, others[rows]).log_softmax(-1)
                logp = logits[: len(logq)].log_softmax(-1)
                kl += functional.kl_div(logp, logq, reduction="none", log_target=True).sum(-1).tolist()
        found.segments += _segments(batch, window, nll, kl)
        before += len(targets)
        window += len(batch)
        done += len(batch)
        if progress:
            progress(done, todo, "perplexity windows")
    return found


def _segments(batch: Sequence[Window], window: int, nll: list[float], kl: list[float]) -> list[Segment]:
    """Sums of a batch whose first window has this number, of its tokens' losses and, of the first, KL."""
    found, at = list[Segment](), 0
    for number, part in enumerate(batch, window):
        places = range(at, at + len(part.ids) - part.first)
        at = places.stop
        owners = part.sources[part.first :] or (0,) * len(places)
        by_source = sorted(zip(owners, places, strict=True))
        for source, some in groupby(by_source, key=lambda one: one[0]):
            mine = [place for _, place in some]
            compared = [kl[place] for place in mine if place < len(kl)]
            losses = (nll[place] for place in mine)
            found.append(Segment(number, source, sum(losses), len(mine), sum(compared), len(compared)))
    return found


def _scored(batch: Sequence[Window]) -> int:
    return sum(len(part.ids) - part.first for part in batch)


def _states(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of all positions but the last of each row: [rows, length - 1, hidden size]."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]


def _batches(parts: Sequence[Window]) -> list[list[Window]]:
    """Windows of equal length, about BATCH_TOKENS tokens at a time, in their order."""
    batches: list[list[Window]] = []
    for part in parts:
        last = batches[-1] if batches else []
        full = (len(last) + 1) * len(part.ids) > BATCH_TOKENS
        if not last or full or len(part.ids) != len(last[0].ids):
            batches.append([part])
        else:
            last.append(part)
    return batches
