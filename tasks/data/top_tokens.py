"""A model's likeliest tokens in place of all, in safetensors files that are mapped to memory.

Of each target the log-probabilities of k tokens, their ids, and the log of what is left for all others: about
4 k bytes a target (6 k where the vocabulary is above 65,536).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGS, IDS, REST = "log_probabilities", "ids", "rest"
SMALL = 2**16
"""Vocabulary up to which an id takes two bytes."""
LEAST = 1e-12
"""Probability that events which are not kept have together at the least."""


class Top(NamedTuple):
    """Of targets the k likeliest tokens: [targets, k] log-probabilities and ids, [targets] the rest's."""

    logs: Tensor
    ids: Tensor
    rest: Tensor

    @classmethod
    def of(cls, log_probabilities: Tensor, k: int) -> Top:
        """The likeliest of a whole vocabulary: [targets, vocabulary]."""
        logs, ids = log_probabilities.topk(k, dim=-1)
        return cls(logs, ids, rest_of(logs).squeeze(-1))

    def put(self, other: Top, places: list[slice]) -> None:
        """Take over the targets of another, which belong to these places one after another."""
        sizes = [place.stop - place.start for place in places]
        for mine, given in zip(self, other, strict=True):
            for place, part in zip(places, given.split(sizes), strict=True):
                mine[place] = part


def empty(targets: int, k: int) -> Top:
    """Room for so many targets."""
    return Top(torch.empty(targets, k), torch.empty(targets, k, dtype=torch.int64), torch.empty(targets))


def events(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens `ids` [tokens, k] and of all others together: [tokens, k + 1].

    By them a divergence is at most that over the whole vocabulary (data processing inequality).
    """
    kept = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest_of(kept)], -1)


def rest_of(kept: Tensor) -> Tensor:
    """The log-probability of all events beside those of `kept` [tokens, k]: [tokens, 1]."""
    left = -torch.expm1(kept.logsumexp(-1, keepdim=True).clamp(max=0.0))
    return left.clamp(min=LEAST).log()


def write(folder: Path, shard: int, top: Top, vocabulary: int) -> None:
    """Keep the targets of a shard."""
    from safetensors.torch import save_file

    tensors = {
        LOGS: top.logs.half(),
        IDS: top.ids.to(torch.uint16 if vocabulary <= SMALL else torch.int32),
        REST: top.rest.half(),
    }
    save_file({name: one.contiguous() for name, one in tensors.items()}, shard_file(folder, shard))


def opened(folder: Path, shard: int) -> Any:
    """A shard whose targets can be read in parts."""
    from safetensors import safe_open

    return safe_open(shard_file(folder, shard), framework="pt")


def read(shard: Any, part: slice) -> Top:
    """The targets of an opened shard in a part of it."""
    return Top(*(shard.get_slice(name)[part] for name in (LOGS, IDS, REST)))


def shard_file(folder: Path, shard: int) -> Path:
    """The file of a shard."""
    return folder / f"top-{shard:05d}.safetensors"
