"""D-Pruner's dual importance against autograd and numpy, and what general text has to do with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Share
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.prune.compatibility import needs_general, resolve
from resprout.tasks.prune.criteria.domain_dual import DomainDual, freedom, regularised
from resprout.tasks.prune.criteria.taylor import Taylor
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.statistics import Gram
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (3, 16), generator=torch.Generator().manual_seed(7))
GENERAL = torch.randint(4, 256, (6, 20), generator=torch.Generator().manual_seed(8))


def config(**values):
    return PruneConfig.model_validate({"method": "d_pruner", "target": {"params_ratio": 0.9}} | values)


def test_freedom_is_the_diagonal_of_the_inverse():
    inputs = np.random.default_rng(0).standard_normal((40, 6))
    gram = Gram(6)
    gram.update(torch.tensor(inputs, dtype=torch.float32))
    hessian = inputs.T @ inputs
    hessian += 0.1 * np.diag(hessian).mean() * np.eye(6)
    expected = np.diag(np.linalg.inv(hessian))
    np.testing.assert_allclose(freedom(gram, 0.1).numpy(), expected, rtol=1e-4)
    few = Gram(6)
    few.update(torch.tensor(inputs[:3], dtype=torch.float32))
    with pytest.raises(StageFailed, match="3 general tokens for 6 inputs with damping 0"):
        freedom(few, 0.0)


def test_the_regulariser_by_hand():
    """g = (1, -2), G = (4, 1): G g^3 = (4, -8), of mean size 6 where g has 1.5; a half of that is added."""
    found = regularised(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 1.0]), 0.5)
    torch.testing.assert_close(found, torch.tensor([1 + 4 / 8, -2 - 8 / 8]))
    assert regularised(torch.tensor([0.0, 0.0]), torch.ones(2), 0.5).tolist() == [0.0, 0.0]


def test_its_gradient_is_that_of_the_regularised_loss():
    """Of L + c sum G (a g)^2 for L = -sum log w, whose Hessian is diagonal and the squared gradient."""
    draw = torch.Generator().manual_seed(0)
    w, general = (torch.rand(9, generator=draw, dtype=torch.float64) + 0.5 for _ in range(2))
    w.requires_grad_()
    loss = -torch.log(w).sum()
    (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
    c, a = 0.3, 0.2
    (expected,) = torch.autograd.grad(loss + c * (general * (a * gradient) ** 2).sum(), w)
    gradient = gradient.detach()
    pull = general * gradient**3
    share = float(2 * c * a**2 * pull.abs().mean() / gradient.abs().mean())
    torch.testing.assert_close(regularised(gradient, general, share), expected)


@pytest.mark.parametrize("family_", ["llama", "gpt2", "phi3"])
def test_scores_against_numpy(family_):
    """One batch: gradients by autograd, inputs by hooks, everything else in numpy."""
    model = tiny_model(family_)
    scores = score_units(model, DomainDual(generality=0.7, damping=0.05), ("ffn",), IDS, general=GENERAL)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(IDS, labels=IDS).loss.backward()
    gradients = {name: one.grad.double().numpy() for name, one in model.named_parameters()}
    for layer, found in zip(anatomy(model).layers, scores, strict=True):
        prefix = f"{layer.family.layer_prefix}{layer.index}."
        total = np.zeros(128)
        for one in layer.part("ffn").slices:
            weight = layer.tensors[one.name].double().numpy()
            if weight.ndim < 2:
                continue
            gradient = gradients[prefix + one.name]
            if layer.family.transposed:
                weight, gradient = weight.T, gradient.T
            x = inputs_of(model, prefix + one.name.removesuffix(".weight"))
            hessian = x.T @ x
            hessian += 0.05 * np.diag(hessian).mean() * np.eye(len(hessian))
            general = weight**2 / np.diag(np.linalg.inv(hessian))
            pull = general * gradient**3
            gradient = gradient + 0.7 * pull * np.abs(gradient).mean() / np.abs(pull).mean()
            lost = np.abs(gradient * weight - (gradient * weight) ** 2 / 2)
            reads = one.name.startswith(layer.family.ffn_reader)
            # Fused projections hold the units of two, one after another.
            each = lost.sum(0) if reads else lost.sum(1).reshape(-1, 128).sum(0)
            total += each
        np.testing.assert_allclose(found["ffn"][:, 0].numpy(), total, rtol=2e-3)


def inputs_of(model, name):
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach().double().flatten(0, -2).numpy())
    )
    model(GENERAL)
    hook.remove()
    return np.concatenate(seen)


def test_without_generality_it_is_the_domain_alone():
    model = tiny_model("llama")
    alone = DomainDual(generality=0.0)
    one = score_units(model, alone, ("ffn",), IDS, general=GENERAL)
    other = score_units(model, alone, ("ffn",), IDS, general=IDS)
    taylor = score_units(model, Taylor(), ("ffn",), IDS)
    for first, second, third in zip(one, other, taylor, strict=True):
        assert torch.equal(first["ffn"], second["ffn"])
        # The Fisher term is small beside the first order.
        torch.testing.assert_close(first["ffn"], third["ffn"], rtol=1e-2, atol=0)
    weighed = score_units(model, DomainDual(), ("ffn",), IDS, general=GENERAL)
    assert not torch.equal(weighed[0]["ffn"], one[0]["ffn"])


def test_shares_are_scored_as_the_whole():
    model = tiny_model("llama", num_hidden_layers=3)
    kinds = ("ffn", "kv_groups")
    whole = score_units(model, DomainDual(), kinds, IDS, general=GENERAL)
    parts = [
        score_units(model, DomainDual(), kinds, IDS, share=Share(index, 3), general=GENERAL)
        for index in range(3)
    ]
    for by_kind, (part,) in zip(whole, parts, strict=True):
        for kind in kinds:
            torch.testing.assert_close(part[kind], by_kind[kind])


def test_general_text_is_asked_for_at_once():
    with pytest.raises(BadInput, match=r"open-domain text, but prune\.general is empty"):
        resolve(config())
    given = {"general": [{"source": "general.jsonl"}]}
    assert needs_general(config(**given))
    assert not needs_general(config(method="taylor", **given))
    with pytest.raises(TypeError, match="general"):
        score_units(tiny_model("llama"), DomainDual(), ("ffn",), IDS)
