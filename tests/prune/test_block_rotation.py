"""SliceGPT, a rotation for each block: keeps outputs, slices as by hand, loses less than one rotation."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape, request
from tiny_models import HIDDEN, tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (12, 24), generator=torch.Generator().manual_seed(8))


def prune(share=0.86, **values):
    base = {"method": "slicegpt", "units": ("hidden",), "round_to": 8, "layout": "per_layer"}
    return PruneConfig.model_validate(base | {"target": {"non_embedding_ratio": share}} | values)


def planned(model, hidden, **values):
    """A plan that keeps so many directions."""
    plan, _ = make_plan(model, prune(**values), IDS)
    return plan.model_copy(update={"hidden": tuple(range(hidden))})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", HIDDEN)
def test_keeping_all_directions_preserves_the_outputs(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    before = model(IDS).logits
    plan = planned(model, 64)
    apply(model, plan, IDS)
    assert (model(IDS).logits - before).norm() / before.norm() < 1e-4
    turns = [one for name, one in model.named_parameters() if "_turn." in name]
    assert len(turns) == 4
    for one in turns:
        torch.testing.assert_close(one @ one.T, torch.eye(64), rtol=0, atol=1e-4)
        assert not torch.allclose(one, torch.eye(64), atol=1e-2)


def basis_of(stream):
    """Principal directions of tokens over their root mean square, strongest first, in numpy."""
    tokens = stream.reshape(-1, 64).numpy().astype(np.float64)
    tokens = tokens / np.sqrt(np.square(tokens).mean(1, keepdims=True))
    return np.linalg.svd(tokens, full_matrices=True)[2].T


def sliced(stream, kept):
    """The stream without what its weakest directions hold."""
    strong = torch.tensor(basis_of(stream)[:, :kept], dtype=torch.float32)
    return stream @ strong @ strong.T


@pytest.mark.parametrize("kept", [40, 56])
def test_a_cut_model_is_the_dense_one_with_its_stream_projected_at_every_sublayer(kept):
    """Llama by hand in its own basis: in front of each sublayer and of the head the stream is projected."""
    dense = tiny_model("llama")
    body = dense.model
    hidden = sliced(body.embed_tokens(IDS), kept)
    position = body.rotary_emb(hidden, torch.arange(IDS.shape[1])[None])
    mask = torch.full((24, 24), -torch.inf).triu(1)[None, None]
    for layer in body.layers:
        read = layer.input_layernorm(hidden)
        added = layer.self_attn(read, position_embeddings=position, attention_mask=mask)[0]
        hidden = sliced(hidden + added, kept)
        hidden = sliced(hidden + layer.mlp(layer.post_attention_layernorm(hidden)), kept)
    expected = dense.lm_head(body.norm(hidden))
    model = copy.deepcopy(dense)
    apply(model, planned(model, kept), IDS)
    assert model.config.hidden_size == kept
    assert model.model.layers[0].attention_turn.weight.shape == (kept, kept)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-3, atol=1e-4)
    assert (expected - dense(IDS).logits).norm() > 1e-2 * expected.norm()


def test_a_stream_that_moves_from_subspace_to_subspace_is_cut_at_no_loss():
    """Embeddings in 20 + 20 dimensions; attention takes the second 20 out, the FFN writes to 20 others.

    So no sublayer sees more than 40 of 64 dimensions, and all together 60. One token, as attention is linear
    then, and embeddings of one length, as norms are.
    """
    model = tiny_model("llama", num_hidden_layers=1)
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 60, generator=draw)).Q
    first, second, third = basis.split(20, dim=1)
    rows = torch.nn.functional.normalize(torch.randn(2, 256, 20, generator=draw), dim=-1) * 8
    model.model.embed_tokens.weight.copy_(rows[0] @ first.T + rows[1] @ second.T)
    layer = model.model.layers[0]
    layer.input_layernorm.weight.fill_(1.0)
    for projection in (layer.self_attn.v_proj, layer.self_attn.o_proj):
        projection.weight.zero_()
    layer.self_attn.v_proj.weight[:20] = second.T
    size = (2 * 8**2 / 64 + model.config.rms_norm_eps) ** 0.5
    # Two heads read each of the two groups of 16 values; the second of each is left at zero.
    layer.self_attn.o_proj.weight[:, :16] = -size * second[:, :16]
    layer.self_attn.o_proj.weight[:, 32:36] = -size * second[:, 16:]
    layer.mlp.down_proj.weight.copy_(third @ third.T @ layer.mlp.down_proj.weight * 30)
    ids = torch.arange(4, 256)[:, None]
    before = model(ids).logits
    errors = {}
    for method in ("slicegpt", "shared_rotation"):
        cut = copy.deepcopy(model)
        layout = "per_layer" if method == "slicegpt" else "uniform"
        apply(cut, planned(model, 40, method=method, layout=layout), ids)
        errors[method] = ((cut(ids).logits - before).norm() / before.norm()).item()
    assert errors["slicegpt"] < 1e-3
    assert errors["shared_rotation"] > 0.02


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", HIDDEN)
def test_sizes_reload_and_generate(family, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    dense = tiny_model(family, tie_word_embeddings=tied)
    config = prune(0.95)
    plan, _ = make_plan(dense, config, IDS)
    pruned = copy.deepcopy(dense)
    apply(pruned, plan, IDS)
    sizes = count(pruned)
    shape = implied_shape(shape_of(dense.config.to_dict()), config)
    assert sizes.params == plan.reached.params == shape.params
    assert sizes.non_embedding_params == plan.reached.non_embedding_params
    assert sizes.non_embedding_params <= 0.95 * plan.dense.non_embedding_params
    assert shape_of(json.loads(pruned.config.to_json_string())).sizes("float32") == sizes
    pruned.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "float32", "cpu")
    assert torch.equal(loaded(IDS).logits, pruned(IDS).logits)
    made = loaded.generate(IDS[:2], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    ids = IDS[:2]
    for _ in range(6):
        scores = loaded(ids, use_cache=False).logits[:, -1]
        scores[:, 2] = -torch.inf
        ids = torch.cat([ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(made, ids)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_registered_it_loads_through_auto_classes(tmp_path):
    model = tiny_model("qwen3")
    apply(model, planned(model, 48), IDS)
    model.save_pretrained(tmp_path)
    code = (
        "import sys, json, torch\n"
        "from resprout.tasks.models.auto import register_layouts\n"
        "from transformers import AutoModelForCausalLM\n"
        "register_layouts()\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='float32')\n"
        "print(json.dumps(model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_layers_of_widths_of_their_own_are_turned_and_then_no_more():
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj.weight[:, ::2] = 0
    settings = PruneConfig.model_validate(
        {"method": "sap", "units": ["ffn"], "round_to": 4, "target": {"params_ratio": 0.93}}
    )
    plan, _ = make_plan(model, settings, IDS)
    apply(model, plan)
    assert not shape_of(model.config.to_dict()).uniform
    before = model(IDS).logits
    whole = copy.deepcopy(model)
    apply(whole, planned(whole, 64), IDS)
    assert (whole(IDS).logits - before).norm() / before.norm() < 1e-4
    plan, _ = make_plan(model, prune(0.95), IDS)
    apply(model, plan, IDS)
    assert count(model).params == plan.reached.params
    dense = shape_of(model.config.to_dict())
    assert dense.rotated
    for config in (prune(), settings):
        with pytest.raises(BadInput, match="prune widths and layers first, and rotate last"):
            request(dense, config)


def test_equal_runs_through_the_doors_give_equal_bytes(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16", tie_word_embeddings=True)
    calibration = write_calibration(tmp_path / "calibration", IDS)
    found = []
    for run in ("first", "second"):
        where = through_the_doors(prune(), tmp_path / "model", calibration, tmp_path / run)
        found.append((where["pruned"] / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    loaded = load_model(where["pruned"], "bfloat16", "cpu")
    assert bool(torch.isfinite(loaded(IDS).logits).all())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": "shared_rotation", "repair": "block_rotation", "layout": "uniform"},
            "a basis of its own, which no stock class has",
        ),
        ({"memory": "stream"}, "stream, but criterion 'principal' runs the whole model"),
        ({"repair": "rotation"}, "hidden, whose channels run through all layers alike"),
        ({"criterion": "hidden_magnitude"}, "scores hidden channels, but repair 'block_rotation' keeps"),
    ],
)
def test_what_does_not_fit_is_said_at_once(values, says):
    with pytest.raises(BadInput, match=says):
        resolve(prune(**values))
