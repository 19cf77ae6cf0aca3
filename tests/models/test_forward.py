"""The walk gives each layer the inputs that a whole forward pass gives it."""

from __future__ import annotations

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Part, Slices, anatomy, cut
from resprout.tasks.models.forward import run_layerwise, watch

SLIDING = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}
NORMS = {"opt": "final_layer_norm", "gpt2": "ln_f", "gpt_neox": "final_layer_norm"}


@pytest.mark.parametrize("batch_tokens", [24, 1, 10_000])
def test_walk_equals_a_forward_pass(family, batch_tokens, tiny):
    """5 samples of 12 tokens in batches of 2, 1 or 5 rows; the last outputs are unnormed."""
    model = tiny(family, **SLIDING.get(family, {}))
    ids = torch.randint(4, 256, (5, 12), generator=torch.Generator().manual_seed(1))
    expected = model.base_model(ids, output_hidden_states=True).hidden_states
    last = None
    for step in run_layerwise(model, ids, batch_tokens):
        torch.testing.assert_close(torch.cat([*step.hidden]), expected[step.index], rtol=1e-5, atol=1e-5)
        last = torch.cat(list(step.run()))
    assert step.index == step.total - 1 == 1
    decoder = anatomy(model).decoder
    norm = getattr(decoder, NORMS.get(family, "norm"))
    torch.testing.assert_close(norm(last), expected[-1], rtol=1e-5, atol=1e-5)
    assert len(list(anatomy(model).layers[0].module.parameters())) > 0


def test_layers_not_run_by_the_caller_are_run(tiny):
    model, ids = tiny("llama"), torch.arange(4, 28).reshape(2, 12)
    ran = [torch.cat([*step.hidden]) for step in run_layerwise(model, ids) for _ in [list(step.run())]]
    lazy = [torch.cat([*step.hidden]) for step in run_layerwise(model, ids)]
    assert not torch.equal(lazy[0], lazy[1])
    assert torch.equal(lazy[1], ran[0])


def test_watch_sees_flat_inputs_and_leaves_no_hook(tiny):
    model, ids = tiny("llama"), torch.arange(4, 28).reshape(2, 12)
    layer, seen = anatomy(model).layers[0], []
    with watch(layer.reader("ffn"), seen.append):
        model(ids)
    model(ids)
    assert [tuple(x.shape) for x in seen] == [(24, 128)]


def test_watch_sees_rows_where_they_are_told(tiny, family):
    """OPT flattens rows and tokens in front of its FFN."""
    model, ids = tiny(family), torch.arange(4, 28).reshape(2, 12)
    layer, flat, rows = anatomy(model).layers[0], [], []
    kind = "ffn" if layer.family.ffn_reader else "kv_groups"
    with watch(layer.reader(kind), flat.append), watch(layer.reader(kind), rows.append, 12):
        model(ids)
    assert rows[0].shape == (2, 12, flat[0].shape[1])
    assert torch.equal(rows[0].flatten(0, 1), flat[0])


def test_a_unit_is_a_set_of_slices(tiny):
    """Qwen2, 4 heads of 16 in 2 groups: group 1 is rows 32 to 63 of q, 16 to 31 of k and v, columns of o."""
    layer = anatomy(tiny("qwen2")).layers[1]
    groups = layer.part("kv_groups")
    rows = {(one.name.removeprefix("self_attn."), one.dim): one.index[1].tolist() for one in groups.slices}
    wide, narrow = list(range(32, 64)), list(range(16, 32))
    assert rows == {
        ("q_proj.weight", 0): wide, ("q_proj.bias", 0): wide, ("o_proj.weight", 1): wide,
        ("k_proj.weight", 0): narrow, ("k_proj.bias", 0): narrow,
        ("v_proj.weight", 0): narrow, ("v_proj.bias", 0): narrow,
    }  # fmt: skip
    assert groups.features([1]).tolist() == wide
    assert layer.part("heads").features([1]).tolist() == list(range(16, 32))
    assert (groups.units, layer.part("heads").units, layer.part("ffn").units) == (2, 4, 128)


def test_slices_of_fused_and_interleaved_projections(tiny):
    """Phi-3 keeps q, k, v (64, 32, 32 rows) and gate, up (128 each) one after another; NeoX by head."""
    layer = anatomy(tiny("phi3")).layers[0]
    (qkv,) = (one for one in layer.part("kv_groups").slices if "qkv" in one.name)
    assert qkv.index[1].tolist() == [*range(32, 64), *range(80, 96), *range(112, 128)]
    (gate_up,) = (one for one in layer.part("ffn").slices if "gate_up" in one.name)
    assert gate_up.index[5].tolist() == [5, 133]
    (fused,) = (one for one in layer.part("heads").slices if "qkv" in one.name)
    assert fused.index[3].tolist() == list(range(48, 64))


def test_cut_takes_all_slices_of_a_unit_away():
    part = Part(
        "ffn",
        3,
        (
            Slices("a", 0, torch.tensor([[0, 3], [1, 4], [2, 5]])),
            Slices("b", 1, torch.eye(3).nonzero()[:, :1]),
        ),
    )
    tensors = {"a": torch.arange(6), "b": torch.arange(6).view(2, 3), "c": torch.ones(1)}
    result = cut(tensors, {"ffn": part}, {"ffn": [0, 2]})
    assert result["a"].tolist() == [0, 2, 3, 5]
    assert result["b"].tolist() == [[0, 2], [3, 5]]
    assert result["c"] is tensors["c"]


def test_empty_input(tiny):
    with pytest.raises(BadInput, match=r"shape \[0, 12\]"):
        next(run_layerwise(tiny("llama"), torch.zeros(0, 12, dtype=torch.long)))
