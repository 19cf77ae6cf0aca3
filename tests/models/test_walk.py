"""The walk gives each layer the inputs that a whole forward pass gives it."""

from __future__ import annotations

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import anatomy, expand
from resprout.tasks.models.walk import walk, watch

SLIDING = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}


@pytest.mark.parametrize("batch_tokens", [24, 1, 10_000])
def test_walk_equals_a_forward_pass(family, batch_tokens, tiny):
    """5 samples of 12 tokens in batches of 2, 1 or 5 rows; the last outputs are unnormed."""
    model = tiny(family, **SLIDING[family])
    ids = torch.randint(4, 256, (5, 12), generator=torch.Generator().manual_seed(1))
    expected = model.model(ids, output_hidden_states=True).hidden_states
    last = None
    for step in walk(model, ids, batch_tokens):
        torch.testing.assert_close(torch.cat(step.hidden), expected[step.index], rtol=1e-5, atol=1e-5)
        last = torch.cat(list(step.run()))
    assert step.index == step.total - 1 == 1
    torch.testing.assert_close(model.model.norm(last), expected[-1], rtol=1e-5, atol=1e-5)
    assert model.model.layers[0].self_attn is not None


def test_layers_not_run_by_the_caller_are_run(tiny):
    model, ids = tiny("llama"), torch.arange(4, 28).reshape(2, 12)
    ran = [torch.cat(step.hidden) for step in walk(model, ids) for _ in [list(step.run())]]
    lazy = [torch.cat(step.hidden) for step in walk(model, ids)]
    assert not torch.equal(lazy[0], lazy[1])
    assert torch.equal(lazy[1], ran[0])


def test_watch_sees_flat_inputs_and_leaves_no_hook(tiny):
    model, ids = tiny("llama"), torch.arange(4, 28).reshape(2, 12)
    layer, seen = anatomy(model).layers[0], []
    with watch(layer.ffn.reader.linear, seen.append):
        model(ids)
    model(ids)
    assert [tuple(x.shape) for x in seen] == [(24, 128)]


def test_anatomy_names_units_and_features(family, tiny):
    """4 heads of 16 in 2 groups: a group owns 2 heads, so 32 columns of o; group 1 owns 32..63."""
    layer = anatomy(tiny(family)).layers[1]
    assert (layer.ffn.units, layer.ffn.features_per_unit) == (128, 1)
    assert (layer.kv_groups.units, layer.kv_groups.features_per_unit) == (2, 32)
    assert layer.kv_groups.features([1]).tolist() == list(range(32, 64))
    assert [rows for _, rows in layer.kv_groups.writers] == [32, 16, 16]
    assert expand([2, 0], 2).tolist() == [4, 5, 0, 1]


def test_empty_input(tiny):
    with pytest.raises(BadInput, match=r"shape \[0, 12\]"):
        next(walk(tiny("llama"), torch.zeros(0, 12, dtype=torch.long)))
