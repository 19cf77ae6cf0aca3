"""Milliseconds of a table, and plans for a latency."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.interfaces import Bench
from resprout.tasks.prune.latency import LatencyTable, measure, measure_models, smaller
from resprout.tasks.prune.plan import Latency
from resprout.tasks.prune.planning import make_plan, plan_from
from tiny_models import tiny_model

torch.set_num_threads(1)
SHAPE = Shape("mistral", 10, 10, 2, (4, 4), (2, 2), (1, 1), config={"tie_word_embeddings": True})
"""A channel holds 30 parameters, a group 80; fixed: embeddings 100, norms 50; 710 in all."""


def test_a_table_adds_up():
    """Rest 5, layers of FFN 4 (3 ms) and 2 groups (2 ms): 5 + 2 * 5."""
    table = LatencyTable({"ffn": {2: 2.0, 4: 3.0}, "kv_groups": {1: 1.0, 2: 2.0}}, rest_ms=5.0)
    assert table.total(SHAPE) == 15.0
    assert table.total(replace(SHAPE, ffn=(2, 4), kv_heads=(1, 2))) == 13.0


@pytest.mark.parametrize(
    ("allocator", "settings"),
    [("dynamic_programming", {}), ("spdy", {"steps": 2, "calibration_tokens": 16})],
)
def test_a_plan_for_a_latency_stays_within_it(allocator, settings, monkeypatch):
    """With a table of 1 ms a block of 8 channels and 4 ms a group, dense is 2 * (16 + 8) + 2 = 50 ms."""
    table = LatencyTable({"ffn": {8 * n: float(n) for n in range(1, 17)}, "kv_groups": {1: 4.0, 2: 8.0}}, 2.0)
    monkeypatch.setattr("resprout.tasks.prune.planning.measure", lambda *given: table)
    monkeypatch.setattr("resprout.tasks.prune.planning.measure_models", lambda *given: (50.0, 40.0))
    model = tiny_model("llama")
    ids = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(1))
    given = {"method": "flap", "repair": "none", "units": ["ffn"], "layout": "per_layer", "round_to": 8}
    given |= {"allocator": allocator, "allocator_settings": settings, "target": {"latency_ratio": 0.8}}
    plan, _ = make_plan(model, PruneConfig.model_validate(given), ids)
    assert plan.latency is not None
    assert plan.latency == Latency(dense=50.0, requested=40.0, reached=40.0, measured=40.0)
    assert sum(len(layer.ffn) for layer in plan.layers) == 2 * 128 - 80
    assert (
        make_plan(model, PruneConfig.model_validate(given | {"target": {"latency_ms": 40.0}}), ids)[0] == plan
    )
    scores = [{"ffn": torch.ones(128, 1)} for _ in range(2)]
    for target, allowed in (({"latency_ratio": 0.3}, "15.0"), ({"latency_ms": 60}, "60.0")):
        out = PruneConfig.model_validate(given | {"target": target})
        says = f"allows {allowed} ms of a forward pass, but the model takes 50.0 here, of which .* takes 18.0"
        with pytest.raises(BadInput, match=says):
            plan_from(scores, shape_of(model.config.to_dict()), "float32", out, Bench(model, ids))


def test_a_table_is_corrected_by_whole_models():
    """Parts 10 a layer of which one saves 3: 25 and 22. Measured 40 and 34: parts count twice, rest 0."""
    table = LatencyTable({"ffn": {2: 3.0, 4: 6.0}, "kv_groups": {2: 4.0}}, rest_ms=5.0)
    narrow = replace(SHAPE, ffn=(2, 4))
    assert (table.total(SHAPE), table.total(narrow)) == (25.0, 22.0)
    found = table.corrected(SHAPE, 40.0, narrow, 34.0)
    assert found == LatencyTable({"ffn": {2: 6.0, 4: 12.0}, "kv_groups": {2: 8.0}}, rest_ms=0.0)
    assert (found.total(SHAPE), found.total(narrow)) == (40.0, 34.0)
    # Not by more than twice or than the model takes, and not at all where nothing was narrowed.
    assert table.corrected(SHAPE, 100.0, narrow, 50.0).of("ffn", 2) == 6.0
    assert table.corrected(SHAPE, 30.0, narrow, 20.0).of("ffn", 2) == 4.5
    assert table.corrected(SHAPE, 30.0, SHAPE, 30.0) == LatencyTable(dict(table.by_width), rest_ms=10.0)


def test_a_plan_is_made_anew_where_the_model_says_otherwise(monkeypatch):
    """A block of 8 channels takes 1 ms by the table and 1.5 in truth, the model 60; 9 ms are to go.

    By the table these are 9 blocks, and the model takes 46.5 instead of 51. Corrected they are 6.
    """
    table = LatencyTable({"ffn": {8 * n: float(n) for n in range(1, 17)}, "kv_groups": {2: 0.5}}, 27.0)

    def truth(model, ids, shape):
        blocks = sum(shape.ffn) // 8
        return 60.0, 60.0 - 1.5 * (32 - blocks)

    monkeypatch.setattr("resprout.tasks.prune.planning.measure", lambda *given: table)
    monkeypatch.setattr("resprout.tasks.prune.planning.measure_models", truth)
    model = tiny_model("llama")
    ids = torch.randint(4, 256, (4, 16), generator=torch.Generator().manual_seed(1))
    given = {"method": "magnitude", "repair": "none", "units": ["ffn"], "layout": "per_layer", "round_to": 8}
    given |= {"allocator": "dynamic_programming", "target": {"latency_ratio": 0.85}}
    plan, _ = make_plan(model, PruneConfig.model_validate(given), ids)
    assert sum(len(layer.ffn) for layer in plan.layers) // 8 == 32 - 6
    assert plan.latency == Latency(dense=60.0, requested=51.0, reached=51.0, measured=51.0)


def test_a_narrowed_model_is_timed_beside_the_model_and_leaves_it_as_it_was():
    """With 16 of 4,096 channels in each layer it takes less time, and its layers are those of before."""
    model = tiny_model("llama", hidden_size=128, intermediate_size=4096, num_hidden_layers=2)
    ids = torch.randint(4, 256, (2, 128), generator=torch.Generator().manual_seed(1))
    layers = list(model.model.layers)
    before = model(ids).logits
    dense_ms, ms = measure_models(model, ids, replace(shape_of(model.config.to_dict()), ffn=(16, 16)))
    assert 0 < ms < dense_ms
    assert all(one is other for one, other in zip(model.model.layers, layers, strict=True))
    assert torch.equal(model(ids).logits, before)


def test_measured_widths_cost_less_the_narrower_they_are():
    """A quarter of wide FFNs takes less time than all of them; the parts make up the whole pass."""
    model = tiny_model("llama", hidden_size=128, intermediate_size=4096, num_hidden_layers=2)
    ids = torch.randint(4, 256, (2, 128), generator=torch.Generator().manual_seed(1))
    shape = anatomy(model).layers[0].shape
    table = measure(model, ids, {"ffn": [1024]})
    assert set(table.by_width["ffn"]) == {1024, 4096}
    assert 0 < table.of("ffn", 1024) < table.of("ffn", 4096)
    assert table.total(shape) > 2 * table.of("ffn", 4096)
    assert smaller(shape, 1024)["ffn"] == [1024, 2048, 3072, 4096]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"layout": "uniform", "allocator": "uniform"},
            r"'uniform' cannot spend; give allocator: dynamic_programming or spdy",
        ),
        ({"units": ["heads"]}, r"names heads; give ffn, kv_groups or both"),
        ({"memory": "stream"}, r"stream, but allocator 'dynamic_programming' runs the whole model"),
    ],
)
def test_what_a_latency_does_not_go_with(changes, says):
    given = {"method": "flap", "units": ["ffn"], "allocator": "dynamic_programming"}
    given |= {"target": {"latency_ratio": 0.8}}
    with pytest.raises(BadInput, match=says):
        resolve(PruneConfig.model_validate(given | changes))
