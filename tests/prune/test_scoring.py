"""The gradient engine: exact gradients, one at a time, and a model left as it was; Taylor scores on top."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hand_units import made_and_read_by
from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Share, silent
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.prune import scoring as engine
from resprout.tasks.prune.criteria.taylor import Taylor
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (5, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two samples in a batch, the last batch smaller."""
    monkeypatch.setattr(engine, "BATCH_TOKENS", 24)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Keeps every gradient, and how many were alive when each came."""

    kept: dict = dataclasses.field(default_factory=dict)
    model: object = None

    needs = "gradients"

    def gradients(self, units):
        def update(name, gradient, share):
            assert all(one.grad is None for one in self.model.parameters()), "gradients pile up"
            key = (units.layer, units.part.kind, name)
            self.kept[key] = self.kept.get(key, 0) + share * gradient

        return SimpleNamespace(names=[one.name for one in units.part.slices], elements=0, update=update)

    def statistic(self, features):
        return None

    def score(self, units, gradients, inputs):
        return torch.ones(units.count, 1)


def plain_gradients(model):
    """Of the mean loss over all of IDS in one pass, by torch alone."""
    model.requires_grad_(True)
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    return found


def test_gradients_of_batches_add_up_to_those_of_the_whole(family):
    model = tiny_model(family)
    expected, criterion = plain_gradients(model), Whole(model=model)
    kinds = tuple(kind for kind in FAMILIES[family].units if kind in Taylor.units)
    score_units(model, criterion, kinds, IDS)
    names = {parameter: name for name, parameter in model.named_parameters()}
    layers = anatomy(model).layers
    for index, layer in enumerate(layers):
        for kind in kinds:
            for one in layer.part(kind).slices:
                wanted = expected[names[layer.module.get_parameter(one.name)]]
                found = criterion.kept.pop((index, kind, one.name))
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert not criterion.kept


def test_the_model_is_left_as_it_was():
    """Weights, gradients, what requires them, and each module's mode; also after a failure."""
    model = tiny_model("opt")
    model.train()
    model.model.decoder.layers[0].eval()
    first, second = list(model.parameters())[:2]
    first.requires_grad_(True)
    first.grad = torch.ones_like(first)
    weights = [one.detach().clone() for one in model.parameters()]

    def check():
        assert all(torch.equal(one, was) for one, was in zip(model.parameters(), weights, strict=True))
        assert first.requires_grad
        assert torch.equal(first.grad, torch.ones_like(first))
        assert not second.requires_grad
        assert all(one.grad is None for one in list(model.parameters())[1:])
        assert not any(one._backward_hooks for one in model.parameters())
        assert model.training
        assert not model.model.decoder.layers[0].training
        assert not any(module._forward_pre_hooks for module in model.modules())

    score_units(model, Taylor(), ("ffn",), IDS)
    check()
    with pytest.raises(RuntimeError, match="stop"):
        score_units(
            model, Taylor(), ("ffn",), IDS, progress=lambda *_: (_ for _ in ()).throw(RuntimeError("stop"))
        )
    check()


def test_a_share_equals_its_part_of_the_whole():
    model = tiny_model("llama", num_hidden_layers=3)
    whole = score_units(model, Taylor(), ("ffn", "kv_groups"), IDS)
    parts = [
        one
        for index in range(2)
        for one in score_units(model, Taylor(), ("ffn", "kv_groups"), IDS, silent, Share(index, 2))
    ]
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(one[kind], other[kind]) for kind in one)


def test_samples_of_one_token_are_refused():
    with pytest.raises(BadInput, match=r"shape \[5, 1\], which predicts no token; .* at least 2 tokens"):
        score_units(tiny_model("llama"), Taylor(), ("ffn",), IDS[:, :1])


def test_a_loss_that_is_not_finite_stops_the_stage():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(StageFailed, match=r"loss .* not finite.*bfloat16 or float32"):
        score_units(model, Taylor(), ("ffn",), IDS)


def test_scores_that_are_not_finite_stop_the_stage(monkeypatch):
    """Activations may be finite where gradients overflow."""
    monkeypatch.setattr(engine, "causal_loss", lambda model, ids: model(ids).logits.sum() * 1e38 * 1e10)
    with pytest.raises(StageFailed, match=r"scores of ffn in layer 0 are not finite"):
        score_units(tiny_model("llama"), Taylor(), ("ffn",), IDS)


def test_a_model_that_does_not_fit_is_refused_before_it_runs(monkeypatch):
    model = tiny_model("llama")
    needed = engine.needed_bytes(model, IDS, 2)
    held = 4 * 2 * (3 * 128 * 64) + (4 + 12) * 128 * 64
    monkeypatch.setattr(engine, "causal_loss", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(engine, "available_bytes", lambda device: needed + held - 1)
    says = rf"about {(needed + held) / 1e9:.1f} GB .* batches of 24 tokens, and .* GB are free; give shorter"
    with pytest.raises(BadInput, match=says):
        score_units(model, Taylor(), ("ffn",), IDS)
    monkeypatch.setattr(engine, "available_bytes", lambda device: needed + held)
    monkeypatch.undo()
    score_units(model, Taylor(), ("ffn",), IDS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_of_memory_is_what_autograd_saves(family, dtype):
    """Estimated from one layer; counted over the whole model. The estimate has the gradient of logits too."""
    model = tiny_model(family, dtype=dtype, num_hidden_layers=4)
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    parameters = [one for layer in anatomy(model).layers for one in layer.module.parameters()]
    with engine.differentiable(model, parameters), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = engine.causal_loss(model, IDS[:2])
    assert loss.requires_grad
    counted = sum(saved.values())
    assert counted <= engine.needed_bytes(model, IDS, 4) <= 1.6 * counted


def exact(model):
    """Norms that do not round to float32 on the way, as those of transformers do."""
    for name, module in model.named_modules():
        if "norm" in name and not isinstance(module, torch.nn.LayerNorm):
            module.forward = lambda x, w=module.weight, eps=module.variance_epsilon: (
                torch.nn.functional.rms_norm(x, x.shape[-1:], w, eps)
            )
    return model


def exact_loss(model):
    """In float64, unlike that of transformers."""
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten()).item()


def test_the_estimate_goes_by_the_widest_layer():
    model = tiny_model("llama", num_hidden_layers=3)
    whole = engine.needed_bytes(model, IDS, 3)
    plan, _ = make_plan(
        model,
        PruneConfig.model_validate(
            {
                "method": "magnitude",
                "units": ["ffn"],
                "layout": "per_layer",
                "round_to": 8,
                "target": {"params_ratio": 0.9},
            }
        ),
        IDS,
    )
    widths = [len(layer.ffn) for layer in plan.layers]
    apply(model, plan)
    assert widths[0] < max(widths), "the first layer is not the widest"
    other = tiny_model("llama", num_hidden_layers=3, intermediate_size=max(widths))
    assert engine.needed_bytes(model, IDS, 3) == engine.needed_bytes(other, IDS, 3) <= whole


def scale(layer, one, unit, factor):
    """Scale what leaves with a unit in one tensor of the layer."""
    parameter = layer.module.get_parameter(one.name)
    parameter.data.index_copy_(
        one.dim, one.index[unit], parameter.data.index_select(one.dim, one.index[unit]) * factor
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "ffn"), ("qwen3", "heads"), ("phi3", "kv_groups"), ("gpt2", "ffn"), ("gpt_neox", "ffn")],
)
def test_vector_form_equals_finite_differences(family, kind):
    """sum_k g_k w_k over a unit's weights in a tensor is how the loss changes as they grow by a factor."""
    model = exact(tiny_model(family, dtype="float64"))
    scores = score_units(model, Taylor(form="vector", order="first"), (kind,), IDS)
    step = 1e-5
    for index, layer in enumerate(anatomy(model).layers):
        part = layer.part(kind)
        for unit in (0, part.units - 1):
            expected = 0.0
            for one in part.slices:
                if layer.module.get_parameter(one.name).dim() < 2:
                    continue
                losses = []
                for factor in (1 + step, (1 - step) / (1 + step)):
                    scale(layer, one, unit, factor)
                    losses.append(exact_loss(model))
                scale(layer, one, unit, 1 / (1 - step))
                expected += abs(losses[0] - losses[1]) / (2 * step)
            assert scores[index][kind][unit].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Over two equal batches, gradients [2, 0] and [0, -1], then [1] and [-3]:
        # g w is [2, 0] and [0, -2], mean [1, -1]; [3] and [-9], mean [-3].
        ({"form": "element"}, 2 + 3),
        ({"form": "vector"}, 0 + 3),
        # Half the mean square of g w: [1, 1], and [22.5].
        ({"form": "element", "order": "second"}, 2 + 22.5),
        ({"form": "vector", "order": "second"}, 2 + 22.5),
        # The first less the second: [0, -2], [-25.5].
        ({"form": "element", "order": "mixed"}, 2 + 25.5),
        ({"form": "vector", "order": "mixed"}, 2 + 25.5),
        ({"aggregate": "max"}, 3),
        ({"aggregate": "last"}, 3),
        ({"aggregate": "prod"}, math.sqrt(2 * 3)),
        ({"aggregate": "prod", "form": "vector"}, 0),
    ],
)  # fmt: skip
def test_taylor_by_hand(settings, expected):
    """One unit: weights [1, 2] make it, with a bias; weight [3] reads it."""
    criterion, units = Taylor(**settings), made_and_read_by(up=[[1.0, 2.0]], bias=[9.0], reader=[[3.0]])
    sums = criterion.gradients(units)
    assert sums.names == ("up.weight", "reader.weight"), "biases are left out"
    for up, reader in (([[2.0, 0.0]], [[1.0]]), ([[0.0, -1.0]], [[-3.0]])):
        sums.update("up.weight", torch.tensor(up), 0.5)
        sums.update("reader.weight", torch.tensor(reader), 0.5)
    assert criterion.score(units, sums, None).tolist() == [[pytest.approx(expected)]]
    assert sums.elements == (3 if settings.get("form") != "vector" else 2)


def test_experts_have_no_last_tensor():
    with pytest.raises(BadInput, match="aggregate is last, but no one module reads experts; give sum"):
        score_units(tiny_model("mixtral"), Taylor(aggregate="last"), ("experts",), IDS)
