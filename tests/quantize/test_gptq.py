"""GPTQ against solutions taken anew for every column, by hand, and against all roundings of a tiny matrix."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch

from resprout.configs.errors import StageFailed
from resprout.tasks.compressed_tensors.types import TensorsType, tensors_type
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.forward import watch
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.quantize.gptq import solve
from resprout.tasks.quantize.grid import Grid
from resprout.tasks.quantize.rounding import round_layers
from tiny_models import tiny_model

TYPES = ("W8A16", "W4A16-G32", "W4A16-G64", "FP8")
IDS = torch.randint(4, 256, (6, 32), generator=torch.Generator().manual_seed(5))


def data(
    tokens: int = 90, inputs: int = 192, outputs: int = 7, seed: int = 0
) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    # Inputs that go together, and are of different sizes: columns come in another order than they lie.
    x = rng.normal(size=(tokens, inputs)) @ rng.normal(size=(inputs, inputs)) * rng.uniform(0.2, 2, inputs)
    return x, torch.tensor(rng.normal(size=(outputs, inputs)), dtype=torch.float32)


def gram_of(x: np.ndarray) -> Gram:
    gram = Gram(x.shape[1])
    for batch in torch.as_tensor(x, dtype=torch.float32).split(33):
        gram.update(batch)
    return gram


def column_by_column(x: np.ndarray, weight: torch.Tensor, grid: Grid, scales: torch.Tensor) -> np.ndarray:
    """After each rounded column the others as least squares has them, from normal equations of their own."""
    inputs = x.shape[1]
    normal = x.T @ x
    normal += 0.01 * normal.diagonal().mean() * np.eye(inputs)
    order = list(np.argsort(-(x.astype(np.float32) ** 2).sum(0), kind="stable"))
    w, group = weight.double().numpy(), grid.group(inputs)
    found = np.zeros_like(w)
    for place, column in enumerate(order):
        done, left = order[:place], order[place:]
        gone = normal[np.ix_(left, done)] @ (w[:, done] - found[:, done]).T
        moved = np.linalg.solve(normal[np.ix_(left, left)], gone)
        now = torch.tensor(w[:, column] + moved[0]).float()
        found[:, column] = grid.nearest(now, scales[:, column // group]).double().numpy()
    return found


def error(x: np.ndarray, weight: torch.Tensor, found: torch.Tensor | np.ndarray) -> float:
    return float((((np.asarray(found, dtype=np.float64) - weight.double().numpy()) @ x.T) ** 2).sum())


@pytest.mark.parametrize("kind", TYPES)
def test_each_column_is_what_least_squares_leaves(kind: str) -> None:
    x, weight = data()
    grid = Grid(tensors_type(kind), torch.float32)
    scales = grid.scales(weight)
    found = solve(weight, gram_of(x), grid, scales)
    wanted = column_by_column(x, weight, grid, scales)
    # float32 and float64 may part at the middle between two codes, and all that comes after with them.
    same = np.isclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert same.all(axis=1).sum() >= 5
    assert error(x, weight, found) == pytest.approx(error(x, weight, wanted), rel=0.05)
    assert error(x, weight, found) < 0.5 * error(x, weight, grid.round(weight, scales))


def test_two_columns_by_hand() -> None:
    """Inputs (2, 1), (0, 1): H = [[4, 2], [2, 2]], damping 0.03. A step is 0.2.

    The first column has the larger diagonal: 0.31 goes to 2 steps, 0.09 too far, of which the second takes
    over 2 / 2.03: 0.95 - 0.0887 = 0.8613 goes to 4 steps, where to nearest it would go to 5.
    """
    x, weight = np.array([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.31, 0.95]])
    grid, scales = Grid(TensorsType("four", 4, 2), torch.float32), torch.tensor([[0.2]])
    torch.testing.assert_close(grid.round(weight, scales), torch.tensor([[0.4, 1.0]]))
    torch.testing.assert_close(solve(weight, gram_of(x), grid, scales), torch.tensor([[0.4, 0.8]]))


def test_it_lies_between_the_best_of_all_roundings_and_nearest() -> None:
    x, weight = data(tokens=12, inputs=4, outputs=6, seed=3)
    grid = Grid(TensorsType("four", 4, 4), torch.float32)
    scales = grid.scales(weight)
    codes = np.array(list(product(range(-8, 8), repeat=4)))
    best = 0.0
    for row, scale in zip(weight.double().numpy(), scales.double().numpy(), strict=True):
        best += (((codes * scale - row) @ x.T) ** 2).sum(1).min()
    found = error(x, weight, solve(weight, gram_of(x), grid, scales))
    assert best <= found * (1 + 1e-6)
    assert found < error(x, weight, grid.round(weight, scales))


def test_dead_inputs_are_rounded_to_nearest_and_bfloat16_stays() -> None:
    x, weight = data()
    x[:, [3, 70]] = 0
    grid = Grid(tensors_type("W4A16-G64"), torch.bfloat16)
    scales = grid.scales(weight)
    found = solve(weight.bfloat16(), gram_of(x), grid, scales)
    assert found.dtype == scales.dtype == torch.bfloat16
    near = grid.round(weight.bfloat16(), scales)
    assert torch.equal(found[:, [3, 70]], near[:, [3, 70]])
    assert not torch.equal(found, near)


def test_inputs_that_are_no_numbers_fail_in_a_sentence() -> None:
    x, weight = data()
    x[0, 0] = np.inf
    grid = Grid(tensors_type("W8A16"), torch.float32)
    with pytest.raises(StageFailed, match="GPTQ cannot invert the Hessian"):
        solve(weight, gram_of(x), grid, grid.scales(weight))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma3_text", "phi3"])
def test_on_calibration_no_layer_loses_more_than_to_nearest(family: str, kind: str) -> None:
    """Outputs of the first layer's matrices on their inputs, by the layer's own hooks."""
    dense = tiny_model(family)
    near, solved = copy.deepcopy(dense), copy.deepcopy(dense)
    grid = Grid(tensors_type(kind), torch.float32)
    assert round_layers(near, grid, None).keys() == round_layers(solved, grid, IDS).keys()
    first = anatomy(dense).layers[0]
    for name, _ in first.shape.matrices(0):
        seen: list[torch.Tensor] = []
        with watch(first.module.get_submodule(name.removesuffix(".weight")), seen.append), torch.no_grad():
            dense(IDS)
        x = torch.cat(seen).double().numpy()
        weights = [anatomy(one).layers[0].module.get_parameter(name) for one in (dense, near, solved)]
        losses = [error(x, weights[0], weight) for weight in weights[1:]]
        assert 0 < losses[1] < losses[0], name


def test_matrices_that_read_the_same_share_one_solution() -> None:
    """Solved together or each by itself, on its own Gram, the result is the same."""
    model = tiny_model("llama")
    solved = copy.deepcopy(model)
    grid = Grid(tensors_type("W4A16-G32"), torch.float32)
    scales = round_layers(solved, grid, IDS)
    layer = anatomy(model).layers[0]
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"):
        gram = Gram(layer.module.get_submodule(name).weight.shape[1])
        with watch(layer.module.get_submodule(name), gram.update), torch.no_grad():
            model(IDS)
        weight = layer.module.get_submodule(name).weight
        assert torch.equal(scales[f"model.layers.0.{name}"], grid.scales(weight))
        found = solved.model.layers[0].get_submodule(name).weight
        same = torch.isclose(found, solve(weight, gram, grid, grid.scales(weight)), atol=1e-6)
        assert same.float().mean() > 0.99


def test_later_layers_are_solved_on_what_rounded_layers_give() -> None:
    model = tiny_model("llama")
    solved, grid = copy.deepcopy(model), Grid(tensors_type("W4A16-G64"), torch.float32)
    round_layers(solved, grid, IDS)
    half = copy.deepcopy(model)
    half.model.layers[0] = copy.deepcopy(solved.model.layers[0])
    agreeing = []
    for seen_by in (half, model):
        layer = seen_by.model.layers[1].mlp.down_proj
        gram = Gram(128)
        with watch(layer, gram.update), torch.no_grad():
            seen_by(IDS)
        again = solve(layer.weight, gram, grid, grid.scales(layer.weight))
        agreeing.append(
            torch.isclose(solved.model.layers[1].mlp.down_proj.weight, again, atol=1e-6).float().mean()
        )
    assert agreeing[0] > 0.99
    assert agreeing[1] < 0.99


def test_each_layer_runs_at_most_three_times_over_the_calibration() -> None:
    model = tiny_model("qwen2", num_hidden_layers=3)
    rows = dict.fromkeys(range(3), 0)

    def count(layer: int) -> object:
        def hook(module: object, given: tuple[torch.Tensor, ...]) -> None:
            rows[layer] += len(given[0])

        return model.model.layers[layer].register_forward_pre_hook(hook)

    for layer in rows:
        count(layer)
    round_layers(model, Grid(tensors_type("W8A16"), torch.float32), IDS)
    assert rows == dict.fromkeys(range(3), 2 * len(IDS))
