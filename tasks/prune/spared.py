"""Layers at the front and at the back that keep their widths; they drop out of the budget.

LLM-Pruner (arXiv 2305.11627) and LoRAPrune (arXiv 2305.18403) leave the first and the last layers alone,
which matter most. What spends a budget is asked about the other layers only, so that this holds for every
allocator of widths; imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Allocator, Bench, Request

if TYPE_CHECKING:
    from resprout.tasks.prune.contracts import Scores

ROUNDING = 1e-9
"""Of a share of the depth, which may come out a hair beside a whole number."""


def free_layers(front: float, back: float, layers: int) -> range:
    """The layers that may get narrower, by their place.

    Each end is a number of layers, or a share of the depth below 1: rounded down at the front and up at the
    back, as LLM-Pruner's 4 to 30 of 32 scale to other depths. Where none is left, BadInput.
    """
    first = math.floor(front * layers + ROUNDING) if 0 < front < 1 else int(front)
    last = math.ceil(back * layers - ROUNDING) if 0 < back < 1 else int(back)
    if first + last >= layers:
        raise BadInput(
            f"prune.spared_front and spared_back spare {first} and {last} of {layers} layers, so that none "
            "is left; give fewer"
        )
    return range(first, layers - last)


def within(request: Request) -> Request:
    """The same request for its free layers alone: what the others hold is spent already."""
    if request.free is None:
        return request
    shape, free = request.shape, request.free
    held = sum(shape.layer_params(shape.widths(layer)) for layer in range(shape.layers) if layer not in free)
    floors = {kind: counts[free.start : free.stop] for kind, counts in request.floors.items()}
    limit = request.limit - held
    return replace(request, shape=shape.with_layers(free), limit=limit, floors=floors, free=None)


def joined(request: Request, granted: Shape) -> Shape:
    """The request's shape with the widths that its free layers were granted."""
    if request.free is None:
        return granted
    shape, free = request.shape, request.free

    def around(all_widths: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
        return all_widths[: free.start] + inner + all_widths[free.stop :]

    return replace(
        shape,
        ffn=around(shape.ffn, granted.ffn),
        kv_heads=around(shape.kv_heads, granted.kv_heads),
        heads_per_group=around(shape.heads_per_group, granted.heads_per_group),
        experts=around(shape.experts, granted.experts) if shape.experts else (),
    )


def allocate(allocator: Allocator, request: Request, scores: Scores, bench: Bench | None) -> Shape:
    """What the allocator grants the free layers, and the others whole."""
    if request.free is None:
        return allocator.allocate(request, scores, bench)
    free = request.free
    looked_at = None if bench is None else replace(bench, layers=free)
    granted = allocator.allocate(within(request), scores[free.start : free.stop], looked_at)
    return joined(request, granted)
