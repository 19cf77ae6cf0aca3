"""Counting on the model and arithmetic on its config agree; both are checked against a sum done by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.models.families import FAMILIES, check_family
from resprout.tasks.models.shape import Sizes, count, shape_of

OPTIONS = {
    "llama": [{}, {"tie_word_embeddings": True}, {"mlp_bias": True, "attention_bias": True}],
    "mistral": [{}],
    "qwen2": [{}, {"tie_word_embeddings": True}],
    "qwen3": [{"head_dim": 24}, {"attention_bias": True}],
    "gemma2": [{}, {"attention_bias": True}],
    "gemma3_text": [{}],
    "phi3": [{}],
    "olmo2": [{}, {"attention_bias": True}],
    "opt": [{}, {"tie_word_embeddings": False}],
    "gpt2": [{}, {"n_inner": None}],
    "gpt_neox": [{}, {"attention_bias": False}, {"tie_word_embeddings": True}],
    "mixtral": [{}],
    "qwen2_moe": [{}, {"qkv_bias": False}],
    "qwen3_moe": [{}, {"head_dim": 24}],
}


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_ in OPTIONS.items() for o in all_])
def test_arithmetic_equals_the_count(name, options, tiny):
    model = tiny(name, **options)
    shape = shape_of(json.loads(model.config.to_json_string()))
    assert shape.sizes("float32") == count(model)
    assert dict(shape.tensors()) == {name: tuple(one.shape) for name, one in model.named_parameters()}


def test_every_family_is_tested():
    assert set(OPTIONS) == set(FAMILIES)


def test_sum_by_hand(tiny):
    """Hidden 64, vocab 256, 2 layers, 4 heads of 16 in 2 groups, FFN 128, no biases, untied.

    embeddings and head 2 * 256 * 64 = 32768; a layer: q 64*64 + k, v 2*32*64 + o 64*64 = 12288,
    FFN 3*64*128 = 24576, norms 128: 36992; final norm 64. Total 32768 + 2 * 36992 + 64 = 106816, in
    bfloat16 213632 bytes.
    """
    model = tiny("llama").to(torch.bfloat16)
    assert count(model) == Sizes(106816, 74048, 213632)
    shape = shape_of(model.config.to_dict())
    assert (shape.unit_params("ffn"), shape.unit_params("kv_groups")) == (192, 6144)
    # A query head of each of two groups: 2 * 16 rows of q and as many columns of o.
    assert shape.unit_params("heads") == 2 * 2 * 16 * 64
    assert (shape.layers, shape.heads, shape.kv_heads, shape.max_positions) == (2, (4, 4), (2, 2), 256)


def test_defaults_that_config_json_may_leave_out():
    base = {"hidden_size": 64, "vocab_size": 10, "num_attention_heads": 4, "num_hidden_layers": 1}
    base["intermediate_size"] = 8
    llama = shape_of({"model_type": "llama", **base})
    assert (llama.head_dim, llama.kv_heads, llama.heads_per_group, llama.tied) == (16, (4,), (1,), False)
    assert shape_of({"model_type": "qwen3", **base}).head_dim == 128


def test_shape_needs_no_torch():
    code = "import sys, resprout.tasks.models.shape; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_unknown_family_and_missing_widths():
    with pytest.raises(
        BadInput,
        match=r"'bloom' is not supported; supported are gemma2, .*llama, mistral, .*tasks/models/README\.md",
    ):
        check_family({"model_type": "bloom"})
    with pytest.raises(BadInput, match="lacks hidden_size, vocab_size"):
        shape_of(
            {"model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 8}
        )


WIDTHS = {
    "model_type": "llama", "hidden_size": 64, "vocab_size": 10, "num_attention_heads": 4,
    "num_hidden_layers": 1, "intermediate_size": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": "64"}, "hidden_size: '64', expected a whole number"),
        ({"vocab_size": 10.5}, r"vocab_size: 10\.5, expected a whole number"),
        ({"num_hidden_layers": [2]}, r"num_hidden_layers: \[2\], expected a whole number"),
        ({"intermediate_size": True}, "intermediate_size: True, expected a whole number"),
        ({"num_attention_heads": -4}, "num_attention_heads: -4, expected a whole number"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads: '2', expected a whole number"),
        ({"num_key_value_heads": 8}, "num_key_value_heads: 8 does not divide"),
        ({"head_dim": {}}, r"head_dim: \{\}, expected a whole number"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings: 'long', expected a whole number"),
        (
            {"num_hidden_layers": 10**8},
            "num_hidden_layers: 100000000, expected a whole number from 1 to 10,000",
        ),
        ({"num_hidden_layers": 2 * 10**9}, "expected a whole number from 1 to 10,000"),
        ({"hidden_size": 2**40}, "hidden_size: 1099511627776, expected a whole number from 1 to"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"resprout_layout": 5}, "resprout_layout in config.json must list"),
        ({"resprout_layout": {"intermediate_size": [8]}}, "resprout_layout in config.json must list"),
        (
            {"resprout_layout": {"intermediate_size": ["8"], "num_key_value_heads": [4]}},
            "resprout_layout in config.json must list",
        ),
    ],
)
def test_widths_that_are_no_numbers(changes, says):
    shape_of(WIDTHS)
    with pytest.raises(BadInput, match=says):
        shape_of(WIDTHS | changes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"rms_norm_eps": NaN}', "is not valid JSON"),
        (b"[]", "holds no object but a list"),
        (b"null", "holds no object but a NoneType"),
        (None, "has no config.json"),
    ],
)
def test_a_config_that_is_no_object(content, says, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=says):
        shape_of(tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method gptq"),
        ({"load_in_4bit": True}, "quant_method unknown"),
        ("fp8", "quant_method unknown"),
    ],
)
def test_quantised_weights_are_refused(given, says):
    with pytest.raises(BadInput, match=f"{says}.*give the unquantised model"):
        shape_of(WIDTHS | {"quantization_config": given})
    assert shape_of(WIDTHS | {"quantization_config": None}).hidden == 64
