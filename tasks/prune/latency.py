"""Milliseconds of a layer of each width, measured on this machine (the table of ZipLM, arXiv 2302.04089).

Layers of one width are alike, so one layer of each width is timed for all. Attention and FFN are timed apart,
as what a layer with both takes more than one that lacks the other; what no layer takes (embeddings, the last
norm, the head) is the rest of a whole forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.layout import build_layer
from resprout.tasks.models.size import Shape
from resprout.tasks.models.walk import Step, walk
from resprout.tasks.prune.target import check_timed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIMED: tuple[Unit, ...] = ("ffn", "kv_groups")
"""Units whose widths are timed."""
REPEATS = 9
WARMUP = 2


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one forward pass over a batch of calibration tokens, by part and width."""

    by_width: Mapping[Unit, Mapping[int, float]]
    rest_ms: float

    def of(self, kind: Unit, count: int) -> float:
        """Milliseconds of a layer's part that keeps `count` units."""
        return self.by_width[kind][count]

    def total(self, shape: Shape) -> float:
        """Milliseconds of a model of this shape."""
        parts = (self.of(kind, count) for kind in TIMED for count in shape.counts(kind))
        return self.rest_ms + sum(parts)


def measure(model: PreTrainedModel, input_ids: Tensor, widths: Mapping[Unit, Iterable[int]]) -> LatencyTable:
    """The table for one batch of `input_ids` [samples, tokens]; the widths of `model` itself are added.

    `model` must have the same widths in every layer, and be a dense one; else BadInput.
    """
    parts = anatomy(model)
    shape = parts.layers[0].shape
    check_timed(shape)
    step = next(walk(model, input_ids))
    run = _runner(model, step)
    both = shape.widths(0)
    whole = run(shape)
    found: dict[Unit, dict[int, float]] = {"ffn": {}, "kv_groups": {}}
    # What is left of a layer without one sublayer is what the other takes.
    bare = {
        "ffn": run(shape.with_counts("ffn", (0,) * shape.layers)),
        "kv_groups": run(shape.with_counts("kv_groups", (0,) * shape.layers)),
    }
    for kind in TIMED:
        present = shape.counts(kind)[0]
        for count in sorted({*widths.get(kind, ()), present}):
            ms = whole if count == present else run(shape.with_counts(kind, (count,) * shape.layers))
            found[kind][count] = max(0.0, ms - bare[kind])
    # The two differences share a layer's fixed cost out unevenly; together they make the whole layer.
    apart = whole - found["ffn"][both.ffn] - found["kv_groups"][both.kv_heads]
    rows = max(1, len(step.hidden[0]))
    with torch.no_grad():
        full = _median(lambda: model(input_ids[:rows].to(model.device), use_cache=False), model.device)
    rest = full - shape.layers * whole
    return LatencyTable(found, max(0.0, rest) + shape.layers * apart)


def _runner(model: PreTrainedModel, step: Step) -> Callable[[Shape], float]:
    """A function that times one layer of a shape: milliseconds."""
    more, arguments = step.arguments[0]
    hidden, kind = step.hidden[0], type(step.layer.module)

    def run(shape: Shape) -> float:
        layer = build_layer(kind, model.config, shape, 0).to(model.device, model.dtype)
        # Weights that were never set may be numbers that a processor is slow at.
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(0.01)
            return _median(lambda: layer(hidden, *more, **arguments), model.device)

    return run


def _median(call: Callable[[], Any], device: torch.device) -> float:
    """Median milliseconds of a call, after a warm-up."""
    seconds = []
    for _ in range(WARMUP + REPEATS):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARMUP:])


def smaller(shape: Shape, round_to: int) -> dict[Unit, list[int]]:
    """Widths that a plan may give a layer of `shape`."""
    ffn = shape.ffn[0]
    return {
        "ffn": [*range(round_to, ffn, round_to), ffn],
        "kv_groups": [*range(1, shape.kv_heads[0] + 1)],
    }
