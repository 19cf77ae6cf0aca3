"""Micro-batches of a step: examples packed into sequences, or padded beside others of like length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resprout.tasks.data.batches import by_area
from resprout.tasks.recover.examples import Examples

PROBED = 3
"""Examples by which it is found out whether a model keeps packed ones apart."""
MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Relative error of packed hidden states that rounding explains."""

Lengths = Sequence[int] | NDArray[np.int64]
Layout = list[list[int]]
"""The sequences of a micro-batch, each with the examples that it holds one after another."""


class Batch(NamedTuple):
    """A micro-batch as tensors.

    Shapes: input_ids, position_ids [sequences, longest]; positions, targets [targets of all
    examples]. `positions` are indices into the flattened sequences * longest of the token *before* each
    target, whose hidden state predicts it. In packed sequences position_ids restart at 0 with each example,
    by which attention stays inside it; without packing they are None.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    positions: Tensor
    targets: Tensor
    examples: list[int]
    """The examples in the order of their targets."""

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: one.to(device) for name, one in self._asdict().items() if isinstance(one, Tensor)
        }
        return self._replace(**moved)


def layouts(lengths: Lengths, examples: Sequence[int], max_tokens: int, pack_to: int | None) -> list[Layout]:
    """The micro-batches of a step: each of at most `max_tokens` places, or a single sequence.

    Args:
        lengths: Tokens of all examples.
        examples: Those of the step.
        max_tokens: Places of a micro-batch, padding included.
        pack_to: Tokens that a sequence is filled up to; None: each example is a sequence.
    """
    if pack_to is None:
        sequences = [[one] for one in examples]
    else:
        sequences = packed(lengths, examples, max(pack_to, *(lengths[one] for one in examples)))
    sizes = [int(sum(lengths[one] for one in sequence)) for sequence in sequences]
    return [[sequences[place] for place in part] for part in by_area(sizes, max_tokens)]


def dealt(parts: Sequence[Layout], lengths: Lengths, rank: int, processes: int) -> list[tuple[Layout, bool]]:
    """The micro-batches that fall to one of several processes, in their order, and whether each counts.

    All processes compute equally many, since they wait for each other in each: one that has too few repeats
    the smallest, which does not count.
    """

    def places(part: int) -> int:
        return len(parts[part]) * max(int(sum(lengths[one] for one in sequence)) for sequence in parts[part])

    largest = sorted(range(len(parts)), key=lambda part: -places(part))
    own = [(parts[part], True) for part in sorted(largest[rank::processes])]
    return own + [(parts[largest[-1]], False)] * (math.ceil(len(parts) / processes) - len(own))


def packed(lengths: Lengths, examples: Sequence[int], size: int) -> Layout:
    """Examples in sequences of at most `size` tokens: the longest first, each where it leaves least room."""
    room: list[int] = []
    sequences: Layout = []
    for one in sorted(examples, key=lambda index: (-lengths[index], index)):
        fitting = [place for place, left in enumerate(room) if left >= lengths[one]]
        if fitting:
            place = min(fitting, key=lambda index: (room[index], index))
        else:
            place = len(room)
            room.append(size)
            sequences.append([])
        sequences[place].append(one)
        room[place] -= lengths[one]
    return sequences


def collate(examples: Examples, layout: Layout, everything: bool, pack: bool) -> Batch:
    """The tensors of a micro-batch; padding is token 0, where no real token looks."""
    longest = max(sum(int(examples.lengths[one]) for one in sequence) for sequence in layout)
    shape = (len(layout), longest)
    ids, places = (np.zeros(shape, dtype=np.int64) for _ in range(2))
    positions, targets = list[np.ndarray](), list[np.ndarray]()
    for row, sequence in enumerate(layout):
        at = 0
        for one in sequence:
            tokens = examples.tokens(one)
            count, first = len(tokens), examples.first(one, everything)
            ids[row, at : at + count] = tokens
            places[row, at : at + count] = np.arange(count)
            positions.append(np.arange(first, count) + (row * longest + at - 1))
            targets.append(tokens[first:].astype(np.int64))
            at += count
        # Padding counts from 0 again, so that it is an example of its own.
        places[row, at:] = np.arange(longest - at)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(places) if pack else None,
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(targets)),
        [one for sequence in layout for one in sequence],
    )


def target_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states that predict the targets: [targets, hidden size].

    Padding is behind all real tokens, where causal attention never looks. With a mask that says so again
    kernels would compute all that causality lets them skip.
    """
    out = model.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden.flatten(0, 1)[batch.positions]


@torch.no_grad()
def keeps_apart(model: Any, examples: Examples, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the model computes for a few short packed examples what it does for each by itself.

    Up to what `dtype`, in which products run, explains.

    transformers tells packed examples by their positions where the family's attention does; OPT's, for one,
    does not.
    """
    few = [int(one) for one in examples.lengths.argsort(kind="stable")[:PROBED]]
    if len(few) < 2:
        return False
    training = model.training
    model.eval()
    layouts: list[tuple[Layout, bool]] = [([few], True), ([[one] for one in few], False)]
    packed, apart = (
        target_states(model, collate(examples, layout, True, pack).to(device)).float()
        for layout, pack in layouts
    )
    model.train(training)
    return bool((packed - apart).norm() <= MOST_ERROR[dtype] * apart.norm())
