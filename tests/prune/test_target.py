"""Targets become widths: the largest allowed shape that fits, worked out by hand; what rounding misses."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.planning import plan_from
from resprout.tasks.prune.target import block_sizes, implied_shape, limit_params, request, warnings_for

DENSE = Shape(
    model_type="llama",
    hidden=60,
    vocab=100,
    head_dim=10,
    ffn=(160, 160),
    kv_heads=(6, 6),
    heads_per_group=(1, 1),
    max_positions=64,
    config={"tie_word_embeddings": True},
)
"""A channel holds 3 * 60 = 180 parameters, a group 4 * 10 * 60 = 2400.

Embeddings 6000; a layer 160 * 180 + 6 * 2400 + 120 = 43320; final norm 60; in all 6000 + 86640 + 60 = 92700.
"""


def prune(target, units=("ffn",), round_to=16, **more):
    return PruneConfig.model_validate(
        {"method": "wanda_sp", "target": target, "units": units, "round_to": round_to} | more
    )


def test_sizes_of_the_shape_are_those_worked_out_by_hand():
    assert (DENSE.params, DENSE.non_embedding_params) == (92700, 86700)


@pytest.mark.parametrize(
    ("target", "limit"),
    [
        ({"params_ratio": 0.5}, 46350),
        ({"params": 80000}, 80000),
        ({"non_embedding_ratio": 0.5}, 49350),
        ({"non_embedding_params": 40000}, 46000),
        ({"bytes": 92701}, 46350),
        ({"bytes": "92.7 kB"}, 46350),
        ({"bytes": "90 KiB"}, 46080),
    ],
)
def test_every_form_of_target_is_a_number_of_parameters(target, limit):
    assert limit_params(DENSE, prune(target).target, "bfloat16") == limit


@pytest.mark.parametrize("size", [0, -5, "much", "3 parsec", 1.5, True])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValidationError, match=r"give a whole number of bytes|only for a switch"):
        prune({"bytes": size})


def test_bytes_are_those_of_the_dtype():
    config = prune({"bytes": 4 * 86940})
    assert implied_shape(DENSE, config, "float32").ffn == (144, 144)
    assert implied_shape(DENSE, prune({"bytes": 2 * 86940}), "bfloat16").ffn == (144, 144)
    with pytest.raises(BadInput, match="asks for 173880 parameters, but the model has 92700"):
        implied_shape(DENSE, config, "bfloat16")


@pytest.mark.parametrize("target", [{"latency_ratio": 0.8}, {"latency_ms": 3.5}])
def test_a_latency_needs_layers_that_are_alike(target):
    config = prune(target, layout="per_layer", allocator="dynamic_programming")
    assert request(DENSE, config).limit == DENSE.params
    with pytest.raises(BadInput, match=r"whose layers are alike, and this one has layers that differ; give"):
        request(replace(DENSE, ffn=(160, 80)), config)


@pytest.mark.parametrize(
    ("params", "width"),
    [
        (92700, 160),
        (92699, 144),  # one parameter too few for 160
        (86940, 144),  # 92700 - 2 * 16 * 180 exactly
        (86939, 128),
        (40860, 16),  # 92700 - 2 * 144 * 180: the smallest width
    ],
)
def test_ffn_width_is_the_largest_multiple_that_fits(params, width):
    shape = implied_shape(DENSE, prune({"params": params}))
    assert shape is not None
    assert shape.ffn == (width, width)
    assert shape.kv_heads == (6, 6)
    assert shape.params <= params


def test_a_width_that_is_no_multiple_may_stay_but_not_be_reached():
    odd = replace(DENSE, ffn=(150, 150))
    assert implied_shape(odd, prune({"params_ratio": 1.0})).ffn == (150, 150)
    assert implied_shape(odd, prune({"params": odd.params - 1})).ffn == (144, 144)


def test_groups_alone_respect_what_a_llama_config_takes():
    """60 % 5 == 0, so 5 heads may stay; 64 % 7, 6 and 5 are not 0, so the next after 8 heads are 4."""
    config = prune({"params": 92700 - 2 * 2400}, units=("kv_groups",))
    assert implied_shape(DENSE, config).kv_heads == (5, 5)
    eight = replace(DENSE, hidden=64, kv_heads=(8, 8))
    target = {"params": eight.params - 1}
    assert implied_shape(eight, prune(target, units=("kv_groups",))).kv_heads == (4, 4)
    mistral = replace(eight, model_type="mistral")
    assert implied_shape(mistral, prune(target, units=("kv_groups",))).kv_heads == (7, 7)


def test_both_kinds_keep_about_the_same_share_and_the_ffn_takes_the_rest():
    """Limit 0.5 * 92700 = 46350; fixed 6000 + 60 + 240 = 6300; share (46350 - 6300) / 86400 = 0.4635.

    0.4635 * 6 = 2.78 groups: 3, which leaves 40050 - 2 * 7200 = 25650 / 360 = 71.25 channels: 64.
    """
    shape = implied_shape(DENSE, prune({"params_ratio": 0.5}, units=("ffn", "kv_groups")))
    assert (shape.kv_heads, shape.ffn) == ((3, 3), (64, 64))


@pytest.mark.parametrize("params", range(14000, 92700, 1777))
def test_both_kinds_never_exceed_the_limit(params):
    shape = implied_shape(DENSE, prune({"params": params}, units=("ffn", "kv_groups"), round_to=8))
    assert shape.params <= params
    assert params - shape.params < 2 * 8 * 180 or shape.ffn == DENSE.ffn


def test_bias_repair_counts_the_biases_it_adds():
    """gate, up and down get biases: a channel holds 182 and a layer 60 more; the width is that much smaller.

    Limit 86940 fits 144 without biases exactly; with them 92700 + 2*(320 + 60) - n * 2 * 182 <= 86940 needs
    n >= 17.9, so 142 channels or fewer: 128.
    """
    config = prune({"params": 86940}, repair="bias")
    shape = implied_shape(DENSE, config)
    assert shape.ffn == (128, 128)
    assert shape.config["mlp_bias"]
    assert not shape.config.get("attention_bias")
    assert shape.params == 92700 + 2 * 380 - 2 * 32 * 182


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3"])
def test_bias_repair_is_refused_where_stock_classes_have_no_bias(model_type):
    dense = replace(DENSE, model_type=model_type)
    with pytest.raises(BadInput, match=r"lack for ffn; give prune.repair: least_squares or none"):
        implied_shape(dense, prune({"params_ratio": 0.8}, repair="bias"))


def test_bias_repair_goes_where_the_stock_class_has_one():
    config = prune({"params_ratio": 0.8}, units=("kv_groups",), repair="bias")
    assert implied_shape(replace(DENSE, model_type="qwen3"), config).config["attention_bias"]


def test_unreachable_targets_say_what_can_be_reached():
    with pytest.raises(BadInput, match=r"reaches 40860 \(0\.441 of the model\).*add kv_groups to prune"):
        implied_shape(DENSE, prune({"params": 40859}))
    with pytest.raises(BadInput, match=r"asks for 92701 parameters, but the model has 92700"):
        implied_shape(DENSE, prune({"params": 92701}))


def test_layers_that_differ_need_the_per_layer_layout():
    with pytest.raises(BadInput, match="already have different widths"):
        implied_shape(replace(DENSE, ffn=(160, 80)), prune({"params_ratio": 0.9}))


def test_per_layer_widths_depend_on_scores_but_the_target_is_checked():
    config = prune({"params_ratio": 0.8}, layout="per_layer")
    assert implied_shape(DENSE, config) is None
    with pytest.raises(BadInput, match="at best"):
        implied_shape(DENSE, prune({"params": 30000}, layout="per_layer"))


def test_per_layer_groups_are_not_bound_by_the_stock_config():
    """8 groups of 3 heads, hidden 64: of 3, 6, ... 24 heads none but the present count divides 64."""
    dense = replace(DENSE, hidden=64, heads_per_group=(3, 3), kv_heads=(8, 8))
    values = {"target": {"params": dense.params - 1}, "units": ("kv_groups",)}
    with pytest.raises(BadInput, match=r"at best; raise the target or add .*ffn.* to prune\.units"):
        request(dense, prune(**values))
    assert request(dense, prune(**values, layout="per_layer")).limit == dense.params - 1


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "gpt_neox"])
def test_heads_that_share_the_hidden_size_need_a_layout(model_type):
    keys = {"gpt2": {"n_positions": 64}}.get(model_type, {"max_position_embeddings": 64})
    dense = replace(DENSE, model_type=model_type, config={"tie_word_embeddings": True, **keys})
    values = {"target": {"params_ratio": 0.9}, "units": ("ffn", "kv_groups")}
    with pytest.raises(
        BadInput, match=r"cannot state fewer; give prune\.layout: per_layer, or units: \[ffn\]"
    ):
        request(dense, prune(**values))
    request(dense, prune(**values, layout="per_layer"))
    for layout, says in (("uniform", r"raise the target or lower round_to$"), ("per_layer", "add kv_groups")):
        with pytest.raises(BadInput, match=says):
            request(dense, prune({"params": 30000}, layout=layout))


def test_a_total_that_guts_the_layers_warns():
    """Vocabulary 1000: embeddings 60000 of 146700, 41 %."""
    big = replace(DENSE, vocab=1000)
    for target, warns in (
        ({"params_ratio": 0.70}, True),  # 146700 * 0.7 - 60000 = 42690 of 86700: 49 %
        ({"params_ratio": 0.75}, False),  # 146700 * 0.75 - 60000 = 50025: 58 %
        ({"non_embedding_ratio": 0.48}, False),
    ):
        config = prune(target, round_to=1, units=("ffn", "kv_groups"))
        found = warnings_for(big, request(big, config), config.target)
        assert bool(found) == warns
    config = prune({"params_ratio": 0.70}, round_to=1)
    assert "embeddings hold 41%" in warnings_for(big, request(big, config), config.target)[0]
    assert "leaves 49%" in warnings_for(big, request(big, config), config.target)[0]


def test_blocks():
    assert block_sizes(150, 64) == [64, 64, 22]
    assert block_sizes(128, 64) == [64, 64]
    assert block_sizes(10, 64) == [10]


def test_planning_needs_no_torch():
    code = (
        "import sys; from resprout.tasks.prune.target import implied_shape; import "
        "resprout.tasks.prune.stage, "
        "resprout.tasks.prune.plan; from resprout.tasks.prune.compatibility import resolve; "
        "from resprout.configs.schema import PruneConfig; "
        "resolve(PruneConfig.model_validate({'target': {'params_ratio': 0.5}, 'layout': 'per_layer'})); "
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def depth(target, units=("layers",), **more):
    return prune(target, units, method="shortgpt", **more)


def test_layers_that_are_all_alike_imply_how_many_stay():
    """A layer holds 43320 of 92700 parameters, so one of two goes for anything from 49380 up."""
    assert implied_shape(DENSE, depth({"params": 92700})).layers == 2
    shape = implied_shape(DENSE, depth({"params": 92699}))
    assert (shape.layers, shape.params) == (1, 49380)
    assert implied_shape(DENSE, depth({"params": 49380})).layers == 1
    with pytest.raises(
        BadInput, match=r"removing layers reaches 49380 \(0\.533 .* raise the target, or prune"
    ):
        implied_shape(DENSE, depth({"params": 49379}))


def test_sublayers_reach_what_is_left_without_all_that_may_go():
    """Attention of layer 0 stays: 4 * 10 * 6 * 60 + 60 = 14460, beside 6060 at the ends."""
    config = depth({"params": 20520}, ("sublayers",), layout="per_layer")
    assert implied_shape(DENSE, config) is None
    with pytest.raises(BadInput, match="removing sublayers reaches 20520"):
        request(DENSE, depth({"params": 20519}, ("sublayers",), layout="per_layer"))


def test_layers_that_compute_with_their_number_stay():
    gpt2 = replace(
        DENSE, model_type="gpt2", config={"n_positions": 8, "scale_attn_by_inverse_layer_idx": True}
    )
    with pytest.raises(BadInput, match=r"scale_attn_by_inverse_layer_idx, by which .* prune ffn instead"):
        request(gpt2, depth({"params_ratio": 0.9}))


SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": "wanda_sp", "units": ["ffn"], "layout": "uniform", "round_to": 128},
            r"0\.750 below \(1,024 ffn in each layer\) and 0\.813 above \(1,152\).*lower round_to \(128\)",
        ),
        ({"method": "wanda_sp", "units": ["ffn"], "layout": "uniform", "round_to": 32}, None),
        ({"method": "wanda_sp", "units": ["ffn"], "layout": "per_layer", "round_to": 128}, None),
        (
            {"method": "shortgpt", "units": ["layers"], "layout": "uniform"},
            r"0\.767 below \(23 layers\) and 0\.801 above \(24\); the one below is taken; ask for 0\.801",
        ),
    ],
)
def test_a_target_that_rounding_misses_by_far_names_the_sizes_next_to_it(values, says):
    """A layer of SmolLM2-135M has 885,888 parameters and 1,536 channels of 1,728; 30 of them; 576 in a norm.

    Asked for 0.8 of 106,203,456: 1,024 channels leave 79,661,376 (0.7501), 1,152 leave 86,296,896 (0.8126),
    1,120 leave 84,638,016 (0.7969); 23 layers leave 81,422,784 (0.7667), 24 leave 84,962,880 (0.80000).
    """
    dense = shape_of(SMOLLM2)
    config = PruneConfig.model_validate({"method": "flap", "target": {"non_embedding_ratio": 0.8}, **values})
    size = 1 if "layers" in config.units else 1536
    scores = [{config.units[0]: torch.arange(size, 0.0, -1.0)[:, None] + layer} for layer in range(30)]
    warnings = plan_from(scores, dense, "bfloat16", config).warnings
    assert len(warnings) == (says is not None)
    assert says is None or re.search(says, warnings[0])


def test_layers_that_are_spared_are_no_step_to_the_next_size():
    """27 of 30 layers lose 1,728 * (1,536 - w) parameters each of 106,203,456.

    1,024 channels leave 82,315,584 (0.7751), 1,152 leave 88,287,552 (0.8313).
    """
    dense = shape_of(SMOLLM2)
    config = PruneConfig.model_validate(
        {
            "method": "taylor", "units": ["ffn"], "target": {"non_embedding_ratio": 0.8}, "round_to": 128,
            "spared_front": 2, "spared_back": 1,
        }
    )  # fmt: skip
    scores = [{"ffn": torch.arange(1536, 0.0, -1.0)[:, None]} for _ in range(30)]
    (warning,) = plan_from(scores, dense, "bfloat16", config).warnings
    assert "0.775 below (1,024 ffn in each layer that may get narrower) and 0.832 above (1,152)" in warning
