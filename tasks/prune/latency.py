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
from typing import Any

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from resprout.configs.presets import Unit
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.forward import BATCH_TOKENS, LayerStep, call_layer, layers_replaced, run_layerwise
from resprout.tasks.models.layouts import build_layer
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.interfaces import Kinds, Model
from resprout.tasks.prune.target import check_timed

TIMED: Kinds = ("ffn", "kv_groups")
"""Units whose widths are timed."""
REPEATS = 7


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

    def corrected(self, dense: Shape, dense_ms: float, narrow: Shape, narrow_ms: float) -> LatencyTable:
        """The table scaled so that both models take what they were measured to take.

        What parts take is scaled alike, by 0.5 to 2, and the rest is what then remains.
        """
        parts = self.total(dense) - self.rest_ms
        saved = self.total(dense) - self.total(narrow)
        scale = min(2.0, max(0.5, (dense_ms - narrow_ms) / saved)) if saved > 0 else 1.0
        scale = min(scale, dense_ms / parts)
        by_width = {
            kind: {count: ms * scale for count, ms in widths.items()}
            for kind, widths in self.by_width.items()
        }
        return LatencyTable(by_width, dense_ms - scale * parts)


def measure(model: Model, input_ids: Tensor, widths: Mapping[Unit, Iterable[int]]) -> LatencyTable:
    """The table for one batch of `input_ids` [samples, tokens]; the widths of `model` itself are added.

    `model` must have the same widths in every layer, and be a dense one; else BadInput.
    """
    shape = anatomy(model).layers[0].shape
    check_timed(shape)
    ids = _batch(input_ids).to(model.device)
    step = next(run_layerwise(model, ids))
    shapes: dict[tuple[Unit, int], Shape] = {
        (kind, count): shape.with_counts(kind, (count,) * shape.layers)
        for kind in TIMED
        # What is left of a layer without one sublayer is what the other takes.
        for count in sorted({0, *widths.get(kind, ()), shape.counts(kind)[0]})
    }
    jobs: dict[Any, Job] = {key: _layer(model, step, one) for key, one in shapes.items()}
    ms = _medians({**jobs, "model": lambda: lambda: model(ids, use_cache=False)}, model.device)
    # The whole layer stands for both kinds, and what each kind saves is measured from it: it is timed twice.
    whole = statistics.mean(ms[kind, shape.counts(kind)[0]] for kind in TIMED)
    found: dict[Unit, dict[int, float]] = {}
    for kind in TIMED:
        counts = sorted(count for one, count in shapes if one == kind)
        taken = [whole if count == counts[-1] else ms[kind, count] for count in counts]
        # More never takes less: allocators would seek out widths that were timed in a lucky moment.
        rising = isotonic_regression(taken, weights=[*[1.0] * (len(taken) - 1), 2.0]).x
        found[kind] = {count: float(one - rising[0]) for count, one in zip(counts, rising, strict=True)}
        found[kind].pop(0)
    # The two differences share a layer's fixed cost out unevenly; together they make the whole layer.
    layers = sum(table[max(table)] for table in found.values())
    return LatencyTable(found, max(0.0, ms["model"] - shape.layers * layers))


def measure_models(model: Model, input_ids: Tensor, narrow: Shape) -> tuple[float, float]:
    """Milliseconds of the table's batch in `model` as it is, and with layers of the widths of `narrow`.

    The second is the median ratio of pairs run one right after the other, times the first.
    """
    parts = anatomy(model)
    ids = _batch(input_ids).to(model.device)
    layers = [_filled(type(layer.module), model, narrow, layer.index) for layer in parts.layers]

    def dense() -> None:
        model(ids, use_cache=False)

    def narrowed() -> None:
        with layers_replaced(parts, layers):
            model(ids, use_cache=False)

    pairs: list[tuple[float, float]] = []
    with torch.no_grad():
        for _ in range(REPEATS + 1):
            pairs.append((_seconds(dense, model.device), _seconds(narrowed, model.device)))
    # The first pair warms up.
    ms = 1000 * statistics.median(one for one, _ in pairs[1:])
    return ms, ms * statistics.median(other / one for one, other in pairs[1:])


def _batch(input_ids: Tensor) -> Tensor:
    return input_ids[: max(1, BATCH_TOKENS // input_ids.shape[1])]


Job = Callable[[], Callable[[], Any]]
"""Makes ready, and returns what is to be timed."""


def _layer(model: Model, step: LayerStep, shape: Shape) -> Job:
    """One layer of a shape over the first batch of a layerwise pass."""
    hidden, kind = step.hidden[0], type(step.layer.module)

    def ready() -> Callable[[], Any]:
        layer = _filled(kind, model, shape, 0)
        return lambda: call_layer(layer, hidden, step.calls[0])

    return ready


def _filled(kind: Any, model: Model, shape: Shape, index: int) -> Any:
    """A layer of class `kind` with the widths of one in `shape`."""
    with torch.device("meta"):
        layer = build_layer(kind, model.config, shape, index)
    layer = layer.to(model.dtype).to_empty(device=model.device)
    # Weights that were never set may be numbers that a processor is slow at.
    for parameter in layer.parameters():
        parameter.requires_grad_(False).fill_(0.01)
    return layer


def _medians(jobs: Mapping[Any, Job], device: torch.device) -> dict[Any, float]:
    """Median milliseconds of each job.

    Jobs take turns, so that a machine that is busy for a while is so for all of them. A layer is built again
    for each turn, so that no more than one is held, and run once before it is timed: memory that was just
    taken is slower than a model's.
    """
    seconds: dict[Any, list[float]] = {key: [] for key in jobs}
    with torch.no_grad():
        for _ in range(REPEATS):
            for key, ready in jobs.items():
                call = ready()
                call()
                seconds[key].append(_seconds(call, device))
    return {key: 1000 * statistics.median(one) for key, one in seconds.items()}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def smaller(shape: Shape, round_to: int) -> dict[Unit, list[int]]:
    """Widths that a plan may give a layer of `shape`."""
    ffn = shape.ffn[0]
    return {"ffn": [*range(round_to, ffn, round_to), ffn], "kv_groups": [*range(1, shape.kv_heads[0] + 1)]}
