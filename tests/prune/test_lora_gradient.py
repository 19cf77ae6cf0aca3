"""LoRA gradients: against the full gradient where theory gives it, and with no gradient of a weight."""

from __future__ import annotations

import gc

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import Slices, anatomy
from resprout.tasks.prune import scoring as engine
from resprout.tasks.prune.criteria.lora_gradient import LoraGradient
from resprout.tasks.prune.scoring import score_units
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (4, 12), generator=torch.Generator().manual_seed(5))


def full_gradients(model, ids):
    """Of all weights, by torch alone, by whole names."""
    model.requires_grad_(True)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    found = {id(one): one.grad for one in model.parameters()}
    model.requires_grad_(False)
    for one in model.parameters():
        one.grad = None
    return found


@pytest.mark.parametrize(("family", "kind"), [("llama", "ffn"), ("gpt2", "ffn"), ("phi3", "kv_groups")])
def test_the_first_step_is_the_full_gradient_seen_through_the_adapter(family, kind):
    """With B = 0: dL/dB = s G A^T and dL/dA = 0, so I = (s G A^T A W)^2, of which 1 - decay counts."""
    model, criterion = tiny_model(family), LoraGradient(decay=0.75)
    gradients = full_gradients(model, IDS)
    scores = score_units(model, criterion, (kind,), IDS)
    for index, (layer, adapters) in enumerate(
        zip(anatomy(model).layers, criterion.adapters(model, (kind,)), strict=True)
    ):
        expected = torch.zeros(layer.part(kind).units)
        for one in layer.part(kind).slices:
            if one.name not in adapters:
                assert layer.tensors[one.name].dim() == 1
                continue
            a, weight = adapters[one.name].a.detach(), layer.tensors[one.name]
            gradient = gradients[id(layer.module.get_parameter(one.name))]
            seen = 2.0 * (a.T @ a @ gradient if family == "gpt2" else gradient @ a.T @ a)
            expected += 0.25 * one.of((seen * weight).square()).sum(dim=1)
        torch.testing.assert_close(scores[index][kind].squeeze(1), expected, rtol=1e-3, atol=0)


def test_an_importance_by_hand():
    """Rank 1: A = [1, 2], dA = [0.5, 0], B = [[1], [0]], dB = [[2], [1]], s = 2, W = [[1, 0], [0, 1]].

    dB A + B dA - dB dA = [[2, 4], [1, 2]] + [[0.5, 0], [0, 0]] - [[1, 0], [0.5, 0]] = [[1.5, 4], [0.5, 2]];
    W + s B A = [[3, 4], [0, 1]]; the product squared is [[20.25, 256], [0, 4]].
    """
    model = tiny_model("llama", hidden_size=64)
    adapter = next(iter(LoraGradient(rank=1).adapters(model, ("ffn",))[0].values()))
    adapter.weight, adapter.scale = torch.eye(2), 2.0
    adapter.a, adapter.b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]])
    adapter.a.grad, adapter.b.grad = torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0], [1.0]])
    assert adapter.importance().tolist() == [[20.25, 256.0], [0.0, 4.0]]
    columns = Slices("reader.weight", 1, torch.arange(2).view(2, 1))
    assert columns.sums(adapter.importance()).tolist() == [20.25, 260.0]


def test_importance_is_averaged_over_steps_while_the_adapters_learn(monkeypatch):
    """Two equal batches without learning are one batch with both weights; with learning they are not."""
    model, twice = tiny_model("llama"), IDS[:2].repeat(2, 1)
    monkeypatch.setattr(engine, "BATCH_TOKENS", 24)
    (once,) = score_units(model, LoraGradient(decay=0.5), ("ffn",), IDS[:2])[:1]
    still = score_units(model, LoraGradient(decay=0.5, learning_rate=0.0), ("ffn",), twice)[0]["ffn"]
    torch.testing.assert_close(still, 1.5 * once["ffn"])
    learnt = score_units(model, LoraGradient(decay=0.5, learning_rate=1e-2), ("ffn",), twice)[0]["ffn"]
    assert not torch.allclose(learnt, 1.5 * once["ffn"], rtol=1e-2)
    passes = score_units(model, LoraGradient(decay=0.5, learning_rate=1e-2, passes=2), ("ffn",), IDS[:2])[0][
        "ffn"
    ]
    assert torch.equal(passes, learnt)


def tensors():
    """All that are alive."""
    return [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]


def test_no_gradient_of_a_weight_is_held():
    """After each step: no weight has a gradient, and no other float tensor of a weight's shape is alive."""
    model = tiny_model("llama", vocab_size=100, intermediate_size=136)
    shapes = {
        tuple(one.shape)
        for layer in anatomy(model).layers
        for one in layer.tensors.values()
        if one.dim() == 2
    }
    shapes |= {shape[::-1] for shape in shapes}
    before, seen = {one.data_ptr() for one in tensors()}, []

    def look(*_):
        assert all(one.grad is None and not one.requires_grad for one in model.parameters())
        new = [one for one in tensors() if one.data_ptr() not in before]
        assert any(tuple(one.shape) == (8, 136) for one in new), "adapters are among them"
        seen.append([tuple(one.shape) for one in new if tuple(one.shape) in shapes])

    score_units(model, LoraGradient(), ("ffn", "kv_groups"), IDS % 96 + 4, look)
    assert seen == [[]]
    assert (136, 64) in shapes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, "rank: 0; give at least 1"),
        ({"passes": 0}, "passes: 0"),
        ({"decay": 1.0}, "decay: 1; give from 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(BadInput, match=says):
        LoraGradient(**settings)
