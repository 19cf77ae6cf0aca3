"""Muon for matrices of layers beside AdamW for the rest, against equations by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.optim import AdamW

from resprout.configs.load import parsed
from resprout.tasks.recover.optimizers import Together, optimizer_of
from tiny_models import tiny_model


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


def trained(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_matrices_of_layers_are_muon_s_and_the_rest_is_adamw_s(model: Any) -> None:
    optimizer = optimizer_of("muon", 1e-3, trained(model), model)
    muon, adamw = optimizer.param_groups
    named = {id(each): name for name, each in model.named_parameters()}
    of_muon = {named[id(one)] for one in muon["params"]}
    assert of_muon == {
        name for name in named.values() if ".layers." in name and name.endswith("_proj.weight")
    }
    rest = {named[id(one)] for one in adamw["params"]}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= rest
    assert of_muon | rest == set(named.values())


def test_a_step_is_along_the_nearest_orthogonal_matrix(model: Any) -> None:
    """It is U V^T of the gradient, of which the first momentum is a multiple, times 0.2 sqrt(max(m, n)).

    Muon's five iterations give singular values of 0.68 to 1.13 in place of 1, in bfloat16.
    """
    weights = trained(model)
    optimizer = optimizer_of("muon", 1e-2, weights, model)
    weight = weights["model.layers.0.mlp.down_proj.weight"]
    before = weight.detach().clone()
    torch.manual_seed(0)
    for each in weights.values():
        each.grad = torch.randn_like(each)
    gradient = weight.grad
    assert gradient is not None
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    optimizer.step()
    step = (before - weight.detach()) / (1e-2 * 0.2 * max(weight.shape) ** 0.5)
    inside = left.T @ step @ right.T
    values = inside.diagonal()
    assert (inside - values.diag()).abs().max() < 0.06
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_the_rest_takes_the_step_of_adamw_alone(model: Any) -> None:
    other = tiny_model("llama")
    other.load_state_dict(model.state_dict())
    both = optimizer_of("muon", 1e-3, trained(model), model)
    alone = AdamW(other.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    torch.manual_seed(0)
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        another.grad = one.grad.clone()
    both.step()
    alone.step()
    assert torch.equal(model.model.norm.weight, other.model.norm.weight)
    assert torch.equal(model.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, other.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_and_columns_without_a_gradient_stay_as_they_are(dim: int, model: Any) -> None:
    weights = trained(model)
    optimizer = optimizer_of("muon", 1e-2, weights, model)
    weight = weights["model.layers.0.mlp.up_proj.weight"]
    index = torch.tensor([1, 3])
    before = weight.detach().clone()
    for number in range(3):
        torch.manual_seed(number)
        for each in weights.values():
            each.grad = torch.randn_like(each)
        assert weight.grad is not None
        weight.grad.index_fill_(dim, index, 0.0)
        optimizer.step()
    assert torch.equal(weight.index_select(dim, index), before.index_select(dim, index))
    assert not torch.equal(weight, before)


def test_one_group_s_rate_is_the_part_s(model: Any) -> None:
    """Also where accelerate has taken the optimizer over."""
    made = optimizer_of("muon", 1e-3, trained(model), model)
    assert isinstance(made, Together)
    optimizer = Accelerator(cpu=True).prepare(made)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for each in model.parameters():
        each.grad = torch.ones_like(each)
    optimizer.step()
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
    assert all("momentum_buffer" in optimizer.state[one] for one in optimizer.param_groups[0]["params"])
    assert all("exp_avg" in optimizer.state[one] for one in optimizer.param_groups[1]["params"])


def test_shares_of_weights_are_refused() -> None:
    from resprout.configs.schema import RecoverConfig

    given = parsed("{optimizer: muon, devices: {sharding: fsdp, processes: 2}}")
    with pytest.raises(ValueError, match="needs whole matrices"):
        RecoverConfig.model_validate(given)
