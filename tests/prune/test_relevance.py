"""Relevance is conserved on its way back, and equals a sum done by hand."""

from __future__ import annotations

import pytest
import torch

from resprout.tasks.core.job import silent
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.prune.criteria.relevance import Relevance, explained, logits_of_what_follows
from tiny_models import read_units, tiny_model

IDS = torch.randint(4, 256, (3, 10), generator=torch.Generator().manual_seed(5))
WITHOUT_BIASES = ("llama", "mistral", "phi3", "qwen3")
"""Families in which all that reaches the logits comes from the embeddings."""


def relevance_of_embeddings(model):
    seen = {}
    embed = model.get_input_embeddings()
    hook = (
        anatomy(model)
        .layers[0]
        .module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    )
    with explained(model):
        total = logits_of_what_follows(model, IDS)
        seen["x"].retain_grad()
        total.backward()
    hook.remove()
    assert embed.weight.grad is None
    return total.item(), (seen["x"] * seen["x"].grad).sum().item()


@pytest.mark.parametrize("family", WITHOUT_BIASES)
def test_all_relevance_of_the_logits_reaches_the_embeddings(family):
    """Without biases every layer's shares add up to the logits: nothing is lost, nothing counted twice."""
    total, reached = relevance_of_embeddings(tiny_model(family))
    assert abs(total) > 0.1
    assert reached == pytest.approx(total, rel=1e-3)


def test_the_rules_by_hand():
    """One token, one layer, of which the FFN's product is z: relevance of feature j is z_j dL/dz_j.

    With the last norm as a constant r_i = out_i / in_i and a head H, L = sum_i H[t, i] r_i (x_i + W[i] . z),
    so feature j gets z_j sum_i H[t, i] r_i W[i, j].
    """
    model = tiny_model("llama", num_hidden_layers=1)
    ids = torch.tensor([[9, 30]])
    layer, seen = model.model.layers[0], {}
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.update(z=args[0]))
    model.model.norm.register_forward_hook(lambda _, args, out: seen.update(given=args[0], out=out))
    model(ids)
    ratio = (seen["out"] / seen["given"])[0, 0]
    expected = seen["z"][0, 0] * ((model.lm_head.weight[30] * ratio) @ layer.mlp.down_proj.weight)
    scores = Relevance().score_model(model, ("ffn",), ids, silent)
    torch.testing.assert_close(scores[0]["ffn"][:, 0], expected.abs(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_model_is_left_as_it_was(family):
    model = tiny_model(family)
    before = model(IDS).logits
    kinds = tuple(kind for kind in ("ffn", "kv_groups", "heads") if kind in read_units(family))
    first = Relevance().score_model(model, kinds, IDS, silent)
    again = Relevance().score_model(model, kinds, IDS, silent)
    assert torch.equal(model(IDS).logits, before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for one, two in zip(first, again, strict=True):
        for kind in kinds:
            assert torch.equal(one[kind], two[kind])
            assert one[kind].max() > 0
