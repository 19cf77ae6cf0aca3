"""Some of the units that a plan keeps give way to units that are gone and have large gradients (GraNet).

Of the n units that a layer (of query heads: each KV group) keeps, the ceil(share * n) with the lowest scores
go, at least one stays, and as many come back: of all that are not kept those with the largest gradient. So
the plan's sizes stay. Liu et al., arXiv 2106.10404; ceil as in the authors' code.
"""

from __future__ import annotations

import math

from torch import Tensor

from resprout.configs.stages import Unit
from resprout.tasks.prune.plan import LayerPlan, Plan


def regrown(
    plan: Plan, scores: list[dict[Unit, Tensor]], growth: list[dict[Unit, Tensor]], share: float
) -> Plan:
    """The plan with other units of the same number.

    `scores` and `growth` are float32 [units, features per unit] for each layer and kind of the plan.
    """
    stays = plan.by_source()
    layers = [_layer(stays[source], scores[source], growth[source], share) for source in sorted(stays)]
    return plan.model_copy(update={"layers": tuple(layers)})


def _layer(
    kept: LayerPlan, scores: dict[Unit, Tensor], growth: dict[Unit, Tensor], share: float
) -> LayerPlan:
    changed: dict[str, tuple[int, ...]] = {}
    for kind in scores:
        worth, gains = scores[kind].mean(dim=1).tolist(), growth[kind].mean(dim=1).tolist()
        # Each KV group keeps as many query heads as the others.
        size = len(worth) // (len(kept.kv_groups) if kind == "heads" else 1)
        units: list[int] = []
        for first in range(0, len(worth), size):
            block = range(first, first + size)
            units += _swapped(
                [unit for unit in kept.kept()[kind] if unit in block], block, worth, gains, share
            )
        changed[kind] = tuple(units)
    return kept.model_copy(update=changed)


def _swapped(
    kept: list[int], block: range, worth: list[float], gains: list[float], share: float
) -> list[int]:
    """As many units of a block as `kept`, ascending; of equal ones the lower stays and comes back first."""
    # Less than a whole unit's rounding error, which a cosine leaves.
    count = min(math.ceil(share * len(kept) - 1e-9), len(kept) - 1)
    stay = sorted(kept, key=lambda unit: (-worth[unit], unit))[: len(kept) - count]
    away = sorted(set(block) - set(stay), key=lambda unit: (-gains[unit], unit))
    return sorted([*stay, *away[:count]])
