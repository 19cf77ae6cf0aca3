"""The ranking over all layers, followed by hand, and the bounds that every allocation keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.allocators.adaptive import Adaptive
from resprout.tasks.prune.allocators.cfsp_softmax import CfspSoftmax
from resprout.tasks.prune.allocators.dynamic_programming import DynamicProgramming
from resprout.tasks.prune.allocators.evolutionary import Evolutionary
from resprout.tasks.prune.allocators.global_ranking import GlobalRanking
from resprout.tasks.prune.allocators.global_standardised import GlobalStandardised, standardised
from resprout.tasks.prune.allocators.pq_index import PqIndex
from resprout.tasks.prune.allocators.spdy import Spdy
from resprout.tasks.prune.allocators.uniform import Uniform
from resprout.tasks.prune.allocators.zeroth_order import ZerothOrder
from resprout.tasks.prune.interfaces import Bench, Request
from resprout.tasks.prune.plan import read_plan
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.registry import ALLOCATORS
from resprout.tasks.prune.stage import plan, score
from tiny_models import column, tiny_model, write_tiny_folder

SHAPE = Shape("mistral", 10, 10, 2, (4, 4), (2, 2), (1, 1), config={"tie_word_embeddings": True})
"""A channel holds 30 parameters, a group 80; fixed: embeddings 100, norms 50; 710 in all."""


def test_standardised_by_hand():
    """Features 1, 3, 5, 7: mean 4, variance 5. Units of two: (-3 - 1) / 2 and (1 + 3) / 2 over sqrt(5)."""
    values = standardised(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    torch.testing.assert_close(values, torch.tensor([-2.0, 2.0]) / 5**0.5)
    assert standardised(torch.ones(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_channels_are_ranked_over_all_layers():
    """Layer 0 scores 0, 0, 0, 8: one stands out (z = 1.73), three do not (-0.58 each).

    Layer 1 scores 100, 101, 102, 103: z = -1.34, -0.45, 0.45, 1.34. Kept of 8 channels: 5 of 30 parameters
    each. First each layer's best (1.73, 1.34), then 0.45, -0.45, then one of layer 0 (-0.58): 2 and 3
    channels.
    """
    request = Request(SHAPE, limit=710 - 3 * 30, kinds=("ffn",), round_to=1)
    scores = [{"ffn": column(0, 0, 0, 8)}, {"ffn": column(100, 101, 102, 103)}]
    assert GlobalStandardised().allocate(request, scores).ffn == (2, 3)


def test_raw_scores_are_ranked_over_all_layers():
    """The scores of the case above: the ranking is layer 1's 103 to 100, then layer 0's 8, 0, 0, 0.

    Of 8 channels 5 stay: all of layer 1 and one of layer 0; of 3 the one that layer 0 must keep, and two.
    """
    scores = [{"ffn": column(0, 0, 0, 8)}, {"ffn": column(100, 101, 102, 103)}]
    for kept, widths in ((5, (1, 4)), (3, (1, 2))):
        request = Request(SHAPE, limit=710 - (8 - kept) * 30, kinds=("ffn",), round_to=1)
        assert GlobalRanking().allocate(request, scores).ffn == widths


def test_every_layer_keeps_a_fixed_number_of_weights():
    """A quarter of all 240 removable weights: 60, or two channels of each layer."""
    scores = [{"ffn": column(0, 0, 0, 8)}, {"ffn": column(100, 101, 102, 103)}]
    request = Request(SHAPE, limit=710 - 3 * 30, kinds=("ffn",), round_to=1)
    assert GlobalRanking(min_threshold_percent=25).allocate(request, scores).ffn == (2, 3)
    # Of a layer of one channel, fewer than 60, all stay; of the other's four two must, and one can.
    small = replace(SHAPE, ffn=(1, 4))
    small_request = Request(small, limit=small.params - 30, kinds=("ffn",), round_to=1)
    few = [{"ffn": column(0)}, {"ffn": column(1, 2, 3, 4)}]
    assert GlobalRanking(min_threshold_percent=40).allocate(small_request, few).ffn == (1, 3)
    with pytest.raises(BadInput, match=r"min_threshold_percent 40 keeps 240 .* leaves 150; lower it"):
        GlobalRanking(min_threshold_percent=40).allocate(request, scores)
    with pytest.raises(BadInput, match=r"has min_threshold_percent: 101; give from 0 to 100"):
        GlobalRanking(min_threshold_percent=101)


def test_groups_weigh_what_they_hold():
    """One group (80) must go for the first 80 parameters asked; the worst is layer 1's second (z = -1).

    Channels are all equal (z = 0), groups z = 1 and -1 in both layers: the groups with -1 go first, and
    what the first leaves free (110 - 80 = 30 are to go beside it) is one channel more.
    """
    scores = [
        {"ffn": column(1, 1, 1, 1), "kv_groups": column(3, 1)},
        {"ffn": column(1, 1, 1, 1), "kv_groups": column(5, 4)},
    ]
    request = Request(SHAPE, limit=710 - 160, kinds=("ffn", "kv_groups"), round_to=1)
    granted = GlobalStandardised().allocate(request, scores)
    assert (granted.ffn, granted.kv_heads) == ((4, 4), (1, 1))
    request = replace(request, limit=710 - 190)
    granted = GlobalStandardised().allocate(request, scores)
    assert (granted.ffn, granted.kv_heads) == ((4, 3), (1, 1))


def test_every_layer_keeps_something_however_low_its_scores():
    request = Request(SHAPE, limit=710 - 4 * 30, kinds=("ffn",), round_to=2)
    scores = [{"ffn": column(0, 1, 0, 1)}, {"ffn": column(*([5.0] * 4))}]
    assert GlobalStandardised().allocate(request, scores).ffn == (2, 2)


def test_a_minimum_share_stays_in_every_layer():
    """Kept of the ranking over all layers, by hand above: the first four, or two of each layer."""
    scores = [{"ffn": column(0, 0, 0, 8)}, {"ffn": column(100, 101, 102, 103)}]
    request = Request(SHAPE, limit=710 - 4 * 30, kinds=("ffn",), round_to=1)
    assert GlobalStandardised().allocate(request, scores).ffn == (1, 3)
    assert GlobalStandardised(min_kept_ratio=0.3).allocate(request, scores).ffn == (2, 2)
    with pytest.raises(BadInput, match=r"min_kept_ratio 0\.6 keeps 180 .* leaves 120; lower it"):
        GlobalStandardised(min_kept_ratio=0.6).allocate(request, scores)
    with pytest.raises(BadInput, match=r"has min_kept_ratio: 1\.5; give from 0 to 1"):
        GlobalStandardised(min_kept_ratio=1.5)


def test_a_layer_keeps_as_many_experts_as_a_token_goes_to():
    config = {"tie_word_embeddings": True, "num_experts_per_tok": 2}
    shape = Shape("mixtral", 8, 16, 4, (8,) * 2, (2,) * 2, (1,) * 2, (4,) * 2, config=config)
    request = Request(shape, shape.params - 4 * shape.unit_params("experts"), ("experts",), round_to=1)
    scores = [{"experts": column(0, 0, 0, 1)}, {"experts": column(5, 6, 7, 8)}]
    assert GlobalStandardised().allocate(request, scores).experts == (2, 2)


TINY = tiny_model(
    "mistral",
    hidden_size=64,
    vocab_size=16,
    head_dim=8,
    num_hidden_layers=3,
    intermediate_size=96,
    num_attention_heads=8,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)
BENCH = Bench(TINY, torch.randint(4, 16, (4, 12), generator=torch.Generator().manual_seed(2)))
SEARCH = Evolutionary(generations=2, children=4, survivors="1,1", tokens="12,48")
ALL = [
    Uniform(),
    GlobalStandardised(),
    GlobalRanking(),
    CfspSoftmax(),
    Adaptive(),
    PqIndex(),
    ZerothOrder(),
    SEARCH,
    DynamicProgramming(),
    Spdy(steps=3, calibration_tokens=12),
]


def test_every_allocator_of_widths_is_tested():
    depth = {"lowest_first", "evolutionary_depth"}
    assert {type(one).__module__.rpartition(".")[2] for one in ALL} | depth == {e.name for e in ALLOCATORS}


@pytest.mark.parametrize("allocator", ALL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("kinds", [("ffn",), ("kv_groups",), ("ffn", "kv_groups")])
@pytest.mark.parametrize("ratio", [0.97, 0.8, 0.65])
def test_allocations_stay_within_the_limit_and_waste_less_than_a_block(allocator, kinds, ratio):
    shape = shape_of(TINY.config.to_dict())
    if kinds == ("kv_groups",):
        ratio = ratio / 2 + 0.5
    generator = torch.Generator().manual_seed(1)
    scores = [
        {
            "ffn": torch.rand(96, 1, generator=generator) * (layer + 1),
            "kv_groups": torch.rand(4, 16, generator=generator),
        }
        for layer in range(3)
    ]
    request = Request(shape, int(shape.params * ratio), kinds, round_to=16)
    before = TINY(BENCH.input_ids).logits
    granted = allocator.allocate(request, scores, BENCH if allocator.runs_model else None)
    assert torch.equal(TINY(BENCH.input_ids).logits, before)
    assert granted == allocator.allocate(request, scores, BENCH if allocator.runs_model else None)
    assert granted.params <= request.limit
    assert all(width % 16 == 0 and width >= 16 for width in granted.ffn)
    assert all(1 <= groups <= 4 for groups in granted.kv_heads)
    steps = {"ffn": 16 * shape.unit_params("ffn"), "kv_groups": shape.unit_params("kv_groups")}
    step = min(steps[kind] for kind in kinds) * (1 if allocator.per_layer else 3)
    assert request.limit - granted.params < step
    assert allocator.per_layer or granted.uniform


def test_an_allocator_that_tries_is_given_the_model_beside_its_scores(tmp_path):
    write_tiny_folder(tmp_path / "model", num_hidden_layers=4)
    ids = torch.randint(4, 256, (4, 20), generator=torch.Generator().manual_seed(2))
    inputs = {name: tmp_path / name for name in ("model", "calibration", "scores")}
    for name in ("calibration", "scores", "plan"):
        (tmp_path / name).mkdir()
    save_file({"input_ids": ids}, tmp_path / "calibration" / "calibration.safetensors")
    config = PruneConfig.model_validate(
        {"method": "cfsp", "target": {"params_ratio": 0.9}, "round_to": 8, "layout": "per_layer"}
    )
    job = Job(config, dtype="float32")
    score.body(job, inputs, tmp_path / "scores", silent)
    plan.body(job, inputs, tmp_path / "plan", silent)
    made = read_plan(tmp_path / "plan")
    assert made == make_plan(load_model(tmp_path / "model", "float32", "cpu"), config, ids)[0]
    assert len({len(layer.ffn) for layer in made.layers}) > 1
