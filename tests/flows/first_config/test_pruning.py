"""The pruning that is chosen can be reached by the widths of the model, whatever its family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.flows.first_config.goal import parse_goal
from resprout.flows.first_config.pruning import choose_pruning
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.target import implied_shape, warnings_for
from resprout.tasks.prune.target import request as asked
from tiny_models import tiny_model

GOALS = (None, "20 % smaller", "1.3x")


def tiny(model_type: str, **widths: Any) -> Shape:
    return shape_of(tiny_model(model_type, **widths).config.to_dict())


def chosen(shape: Shape, goal: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    found = choose_pruning(shape, parse_goal(goal) if goal else None, dtype)
    assert found.why
    return dict(found.values)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_gets_a_target_that_it_reaches(model_type: str, goal: str | None) -> None:
    shape = tiny(model_type)
    if shape.experts and goal == "1.3x":
        with pytest.raises(BadInput, match=r"--goal is '1\.3x', .* has experts"):
            chosen(shape, goal)
        return
    config = PruneConfig.model_validate(chosen(shape, goal))
    reached = implied_shape(shape, config, "float32")
    if goal == "1.3x":
        assert (config.target.latency_ratio, config.layout, reached) == (0.769, "per_layer", None)
        return
    assert reached is not None
    assert warnings_for(shape, asked(shape, config), config.target, reached) == []
    share = reached.params / shape.params
    assert 0.78 < share <= 0.8 if goal else 0.87 < share < 0.93


def test_rounding_is_as_coarse_as_the_widths_allow() -> None:
    wide = tiny("llama", intermediate_size=8192, num_hidden_layers=1)
    assert chosen(wide)["round_to"] == 128
    assert chosen(tiny("llama"), "20 %")["round_to"] == 8
    odd = tiny("llama", intermediate_size=149)
    found = chosen(odd, "20 %")
    coarser = PruneConfig.model_validate({**found, "round_to": 2 * found["round_to"]})
    assert warnings_for(odd, asked(odd, coarser), coarser.target, implied_shape(odd, coarser)) != []


def test_a_model_of_embeddings_is_asked_without_them() -> None:
    large = tiny("llama", vocab_size=20_000)
    target = chosen(large)["target"]
    assert list(target) == ["non_embedding_ratio"]
    with pytest.raises(BadInput, match=r"--goal is '20 %', which does not suit this model: .* reaches"):
        chosen(large, "20 %")


def test_what_the_ffn_cannot_give_attention_gives() -> None:
    shape = tiny("gemma2")
    assert chosen(shape, "20 %")["units"] == ["ffn"]
    assert chosen(shape, "60 %")["units"] == ["ffn", "kv_groups"]


def test_experts_are_pruned_by_what_scores_them() -> None:
    assert chosen(tiny("mixtral"))["method"] == "magnitude"
    assert chosen(tiny("llama"))["method"] == "recommended"


def test_layers_that_differ_get_widths_of_their_own() -> None:
    shape = tiny("llama")
    assert chosen(replace(shape, ffn=(128, 96)))["method"] == "recommended_per_layer"


def test_a_size_counts_in_the_dtype() -> None:
    shape = tiny("llama")
    half = f"{shape.params * 2 * 0.8 / 1000:.0f}kB"
    config = PruneConfig.model_validate(chosen(shape, half, "bfloat16"))
    reached = implied_shape(shape, config, "bfloat16")
    assert reached is not None
    assert 0.78 < reached.params / shape.params <= 0.8
    with pytest.raises(BadInput, match="give a smaller target"):
        chosen(shape, "1GB")


def test_of_a_model_that_is_not_seen_nothing_is_claimed() -> None:
    found = choose_pruning(None, None, "float32")
    assert "not here" in found.why[0]
    PruneConfig.model_validate(found.values)
