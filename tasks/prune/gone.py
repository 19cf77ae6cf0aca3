"""What an earlier plan removed stays gone: a later round spends on what that plan kept, the rest is last.

Plans of all rounds are for the dense shape, and so are their scores. Allocators are asked for widths of at
most those that the earlier plan left, so that shares which they promise are shares of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.plan import LayerPlan, Plan

Scores = Sequence[Mapping[Unit, Tensor]]
NOTHING = LayerPlan(ffn=(), kv_groups=())
"""What stays of a layer that goes."""


def left_of(before: Plan, dense: Shape) -> Shape:
    """The dense shape with the widths that an earlier plan left: 0 where a layer or sublayer is gone."""
    stays = before.by_source()
    widths = [stays.get(layer, NOTHING).widths(dense.widths(layer)) for layer in range(dense.layers)]
    return replace(
        dense,
        ffn=tuple(one.ffn for one in widths),
        kv_heads=tuple(one.kv_heads for one in widths),
        heads_per_group=tuple(one.heads_per_group for one in widths),
    )


def remaining(before: Plan, scores: Scores) -> list[dict[Unit, Tensor]]:
    """The scores [units, features per unit] of the units that are there; those of layers stay as they are."""
    return [
        {
            kind: one if (stay := _stay(before, layer, kind)) is None else one[stay]
            for kind, one in each.items()
        }
        for layer, each in enumerate(scores)
    ]


def ranked_last(before: Plan, scores: Scores) -> list[dict[Unit, Tensor]]:
    """The scores with minus infinity for units that are gone, so that none comes before one that is there."""
    ranked: list[dict[Unit, Tensor]] = []
    for layer, by_kind in enumerate(scores):
        ranked.append({})
        for kind, values in by_kind.items():
            stay = _stay(before, layer, kind)
            ranked[layer][kind] = values
            if stay is not None:
                ranked[layer][kind] = values.new_full(values.shape, -math.inf)
                ranked[layer][kind][stay] = values[stay]
    return ranked


def _stay(before: Plan, layer: int, kind: Unit) -> list[int] | None:
    """The units that an earlier plan kept; None where they are no units inside a layer."""
    kept = before.by_source().get(layer, NOTHING).kept()
    return list(kept[kind]) if kind in kept else None
