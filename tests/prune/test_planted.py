"""Every criterion finds units that were made unimportant; the control does not."""

from __future__ import annotations

import gc

import pytest
import torch

from resprout.configs.presets import DEPTH
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.scoring import best_units, score_units
from tiny_models import read_units, tiny_model

IDS = torch.randint(4, 256, (6, 16), generator=torch.Generator().manual_seed(5))
BLIND = {("activation", "heads"), ("gradient", "heads"), ("principal", "hidden")}
"""Queries and what reads a head are scaled, but the values, which alone make the size of its output, stay;
the units of `principal` are directions of the residual stream, not channels (test_rotation.py)."""
CASES = [
    (entry.name, kind, family)
    for entry in CRITERIA
    for family in ("llama", "gpt2", "qwen3_moe")
    for kind in FAMILIES[family].units
    if kind in read_units(family) or "experts" in entry.declared["units"]
    if kind not in DEPTH and kind in entry.declared["units"] and (entry.name, kind) not in BLIND
]


def planted(family, kind):
    """A model in which all that couples every second unit is scaled by 1e-3, biases too."""
    model = tiny_model(family, num_key_value_heads=4) if kind == "kv_groups" else tiny_model(family)
    for layer in anatomy(model).layers:
        for one in layer.part(kind).slices:
            parameter, weak = layer.module.get_parameter(one.name), one.index[1::2].flatten()
            factor = torch.ones(len(one.along(parameter)))
            factor[weak] = 1e-3
            if one.outer is None:
                parameter.mul_(factor.view(-1, *[1] * (parameter.dim() - one.dim - 1)))
            else:
                parameter.mul_(factor.view(len(parameter), -1).unsqueeze(3 - one.dim))
    return model


@pytest.mark.parametrize(("name", "kind", "family"), CASES)
def test_units_scaled_down_go_first(name, kind, family):
    model = planted(family, kind)
    blocks = anatomy(model).layers[0].part(kind).blocks
    found = []
    for by_kind in score_units(model, CRITERIA.get(name)(), (kind,), IDS, general=IDS):
        count = len(by_kind[kind])
        best = best_units(by_kind[kind], count // blocks // 2, blocks)
        found.append(best == list(range(0, count, 2)))
    assert all(found) == (name != "random")


@pytest.mark.parametrize("entry", CRITERIA, ids=lambda entry: entry.name)
def test_nothing_is_held_afterwards(entry):
    """A sweep scores by one criterion after another in one process."""
    units = [kind for kind in FAMILIES["llama"].units if kind in entry.declared["units"]][:1]
    tiny_model("llama")  # what it is copied from is kept
    gc.freeze()
    model = tiny_model("llama")
    scores = score_units(model, CRITERIA.get(entry.name)(), tuple(units), IDS, general=IDS)
    assert new_bytes() >= sum(one.nbytes for by_kind in scores for one in by_kind.values()) > 0
    del model, scores
    assert new_bytes() < 10_000


def new_bytes():
    """Bytes of all tensors that came after gc.freeze and that Python holds."""
    gc.collect()
    return sum(one.nbytes for one in gc.get_objects() if isinstance(one, torch.Tensor))
