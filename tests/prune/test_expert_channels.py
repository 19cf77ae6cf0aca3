"""FFN channels inside experts: each expert loses as many, and its own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import anatomy, cut
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (6, 16), generator=torch.Generator().manual_seed(5))
FAMILIES = ["mixtral", "qwen2_moe", "qwen3_moe"]


def config(**values):
    given = {"method": "magnitude", "units": ["ffn"], "round_to": 8, "target": {"non_embedding_ratio": 0.8}}
    return PruneConfig.model_validate(given | values)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_expert_loses_its_own_weakest_channels(family, tmp_path):
    """Scores by hand: the norm of a channel's rows in gate and up and its column in down."""
    model = tiny_model(family)
    plan, scores = make_plan(model, config(), IDS)
    experts = model.model.layers[1].mlp.experts
    number, width = len(experts.down_proj), experts.down_proj.shape[2]
    gate, up = experts.gate_up_proj.split(width, dim=1)
    squares = gate.square().sum(2) + up.square().sum(2) + experts.down_proj.square().sum(1)
    torch.testing.assert_close(scores[1]["ffn"].view(number, width), squares.sqrt())
    kept = torch.tensor(plan.layers[1].expert_ffn).view(number, -1)
    best = squares.topk(len(plan.layers[1].ffn), dim=1).indices.sort(dim=1).values
    assert torch.equal(kept, best + width * torch.arange(number).view(-1, 1))
    assert len({tuple(row) for row in best.tolist()}) == number
    assert implied_shape(shape_of(model.config.to_dict()), config()).params == plan.reached.params

    before = [experts.gate_up_proj.clone(), experts.down_proj.clone()]
    apply(model, plan)
    after = model.model.layers[1].mlp.experts
    for expert in range(number):
        rows = torch.cat([best[expert], width + best[expert]])
        assert torch.equal(after.gate_up_proj[expert], before[0][expert][rows])
        assert torch.equal(after.down_proj[expert], before[1][expert][:, best[expert]])
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(stock(IDS).logits, model(IDS).logits)


def test_experts_and_channels_leave_at_once():
    layer = anatomy(tiny_model("mixtral")).layers[0]
    kinds = ("experts", "ffn")
    channels = [128 * expert + channel for expert in (1, 3) for channel in (expert, 7, 100)]
    found = cut(
        layer.tensors, {kind: layer.part(kind) for kind in kinds}, {"experts": [1, 3], "ffn": channels}
    )
    for place, expert in enumerate((1, 3)):
        rows = [expert, 7, 100]
        gate_up, down = (layer.tensors[f"mlp.experts.{name}_proj"][expert] for name in ("gate_up", "down"))
        expected = gate_up[rows + [128 + row for row in rows]]
        assert torch.equal(found["mlp.experts.gate_up_proj"][place], expected)
        assert torch.equal(found["mlp.experts.down_proj"][place], down[:, rows])
    assert torch.equal(found["mlp.gate.weight"], layer.tensors["mlp.gate.weight"][[1, 3]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"method": "wanda_sp"},
            r"criterion 'wanda_sp' looks at .* give prune\.criterion: .*magnitude",
        ),
        ({"repair": "least_squares"}, r"repair 'least_squares' looks at .* give prune\.repair: none"),
        (
            {"layout": "per_layer", "allocator": "spdy"},
            r"allocator 'spdy' looks at .* give prune\.allocator: .*global_standardised",
        ),
        ({"layout": "per_layer", "allocator": "evolutionary"}, "allocator 'evolutionary' looks at"),
        (
            {"units": ["experts", "ffn"], "layout": "per_layer"},
            "experts and ffn, whose sizes depend on each other",
        ),
    ],
)
def test_what_reads_channels_cannot_look_into_experts(changes, says):
    with pytest.raises(BadInput, match=says):
        implied_shape(shape_of(tiny_model("mixtral").config.to_dict()), config(**changes))


def test_a_criterion_called_by_itself_says_so_too():
    with pytest.raises(BadInput, match="what reads ffn, which in this model no one module does"):
        score_units(tiny_model("mixtral"), CRITERIA.get("flap")(), ("ffn",), IDS)


def test_a_plan_keeps_as_many_channels_of_each_expert():
    model = tiny_model("mixtral")
    plan, _ = make_plan(model, config(), IDS)
    layer = plan.layers[0]
    uneven = layer.model_copy(update={"expert_ffn": layer.expert_ffn[1:]})
    with pytest.raises(BadInput, match=r"keeps more ffn of one block of 128 than of another in layer 0"):
        apply(model, plan.model_copy(update={"layers": (uneven, *plan.layers[1:])}))
    shared = layer.model_copy(update={"expert_ffn": None})
    with pytest.raises(BadInput, match=r"each expert of layer 0 keeps \d+ of 128 channels but not which"):
        apply(model, plan.model_copy(update={"layers": (shared, *plan.layers[1:])}))
