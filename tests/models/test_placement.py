"""Layers fill the devices in their order, and none is split."""

from __future__ import annotations

import pytest

from resprout.tasks.models.placement import least_bytes, place
from resprout.tasks.models.shape import shape_of
from tiny_models import WIDTHS

SHAPE = shape_of({"model_type": "llama", **WIDTHS, "num_hidden_layers": 6})
LAYER = 2 * SHAPE.layer_params(SHAPE.widths(0))
ENDS = 2 * SHAPE.params - 6 * LAYER


@pytest.mark.parametrize(
    ("room", "layers", "offloads"),
    [
        ({"cpu": ENDS + 6 * LAYER}, ["cpu"] * 6, False),
        ({"cpu": ENDS + 6 * LAYER, 0: ENDS + 6 * LAYER}, [0] * 6, False),
        ({"cpu": 0, 0: ENDS + 4 * LAYER, 1: 2 * LAYER}, [0, 0, 0, 0, 1, 1], False),
        # One layer's room is for those that are fetched.
        ({"cpu": ENDS + 6 * LAYER - 1}, ["cpu"] * 4 + ["disk"] * 2, True),
        ({"cpu": 2 * LAYER, 0: ENDS + 3 * LAYER, 1: LAYER}, [0, 0, 1, "cpu", "cpu", "disk"], True),
        ({"cpu": 4096}, ["disk"] * 6, True),
    ],
)
def test_layers_fill_gpus_then_memory_then_disk(room, layers, offloads):
    found = place(SHAPE, "bfloat16", room)
    assert list(found.layers) == layers
    assert found.offloads == offloads
    assert found.main == (0 if 0 in room else "cpu")
    assert sum(found.held.values()) == 2 * SHAPE.params
    assert found.held[found.main] == ENDS + LAYER * layers.count(found.main)


def test_a_layer_that_does_not_fit_leaves_no_gap_that_a_later_one_fills():
    shape = SHAPE.with_counts("ffn", [64, 512, 64, 64, 64, 64])
    small, large = (2 * shape.layer_params(shape.widths(index)) for index in (0, 1))
    ends = 2 * shape.params - large - 5 * small
    found = place(shape, "bfloat16", {0: ends + large + 2 * small, "cpu": 0})
    assert found.layers == (0, "disk", "disk", "disk", "disk", "disk")
    assert least_bytes(shape, "bfloat16") == ends + large
