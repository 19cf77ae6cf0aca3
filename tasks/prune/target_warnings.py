"""Sentences about a target that is within reach: it will gut the model, or rounding misses it by far."""

from __future__ import annotations

import math
from collections.abc import Iterator

from resprout.configs.schema import TargetConfig
from resprout.configs.stages import DEPTH, Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Request
from resprout.tasks.prune.target import stock_heads

MISS = 0.01
"""Share of the model by which rounding may miss the target before that is reported."""


def warnings_for(
    dense: Shape, wanted: Request, target: TargetConfig, reached: Shape | None = None, alike: bool = True
) -> list[str]:
    """Sentences about a target that will likely gut the model, or that rounding misses by more than MISS.

    `reached` is the shape that the target led to, None: it is not known yet; `alike` says whether all its
    layers that may get narrower were given the same widths.
    """
    missed = [] if reached is None or target.timed or target.whole else _missed(dense, wanted, reached, alike)
    return [*_gutted(dense, wanted, target), *missed]


def _missed(dense: Shape, wanted: Request, reached: Shape, alike: bool) -> list[str]:
    """Where the target lies more than MISS of the model above what was reached, the sizes next to it."""
    apart = wanted.embedding_params is not None

    def share(shape: Shape) -> float:
        if apart:
            return shape.non_embedding_params / dense.non_embedding_params
        return shape.params / dense.params

    whole = dense.non_embedding_params if apart else dense.params
    asked = (wanted.limit - (wanted.embedding_params or 0)) / whole
    larger = [(kind, one) for kind, one in _next_larger(wanted, reached, alike) if not wanted.fits(one)]
    if asked - share(reached) <= MISS or not larger:
        return []
    kind, above = min(larger, key=lambda one: one[1].params)
    spared = "" if wanted.free is None else " that may get narrower"
    if kind in DEPTH:
        below, more, unit = _layers(reached), _layers(above), "layers"
    elif alike or kind == "hidden":
        below, more = (one.counts(kind)[_free(wanted).start] for one in (reached, above))
        unit = "hidden channels" if kind == "hidden" else f"{kind} in each layer{spared}"
    else:
        below, more, unit = sum(reached.counts(kind)), sum(above.counts(kind)), f"{kind} in all layers"
    of = " without embeddings" if apart else ""
    # Rounded up, so that asking for it takes it.
    over = math.ceil(share(above) * 1000) / 1000
    remedy = f", or lower round_to ({wanted.round_to})" if kind in ("ffn", "hidden") else ""
    return [
        f"prune.target asks for {asked:.3f} of the parameters{of}, which no allowed size comes near: the "
        f"nearest sizes are {share(reached):.3f} below ({below:,} {unit}) and {over:.3f} above ({more:,}); "
        f"the one below is taken; ask for {over:.3f} to take the other{remedy}"
    ]


def _next_larger(wanted: Request, reached: Shape, alike: bool) -> Iterator[tuple[Unit, Shape]]:
    """The shapes a step of one kind of unit above: in every layer, or in one where they differ."""
    shape = wanted.shape
    if wanted.kinds[0] in DEPTH:
        if wanted.kinds == ("layers",) and shape.uniform and _layers(reached) < shape.layers:
            yield "layers", shape.with_layers(range(_layers(reached) + 1))
        return
    for kind in wanted.kinds:
        counts, free = reached.counts(kind), _free(wanted)
        for widened in [free] if alike or kind == "hidden" else [range(at, at + 1) for at in free]:
            more = [_step(wanted, kind, at, one) if at in widened else one for at, one in enumerate(counts)]
            larger = reached.with_counts(kind, more)
            if more != list(counts) and stock_heads(wanted, larger):
                yield kind, larger


def _free(wanted: Request) -> range:
    """The layers that may get narrower."""
    return range(wanted.shape.layers) if wanted.free is None else wanted.free


def _layers(shape: Shape) -> int:
    """Layers of which something is left."""
    return sum(any(widths) for widths in zip(shape.ffn, shape.kv_heads, strict=True))


def _step(wanted: Request, kind: Unit, layer: int, count: int) -> int:
    """The next number of units above `count` in a layer, or all that it has."""
    step = wanted.round_to if kind in ("ffn", "hidden") else 1
    return min(wanted.shape.counts(kind)[layer], (count // step + 1) * step)


def _gutted(dense: Shape, wanted: Request, target: TargetConfig) -> list[str]:
    kept = (wanted.limit - dense.embedding_params) / dense.non_embedding_params
    total = any(one is not None for one in (target.params, target.params_ratio, target.bytes))
    if total and kept < 0.5 and "hidden" not in wanted.kinds:
        share = dense.embedding_params / dense.params
        return [
            f"embeddings hold {share:.0%} of the parameters and are not pruned, so this target leaves "
            f"{kept:.0%} of the layers' parameters; non_embedding_ratio states the target without them"
        ]
    return []
