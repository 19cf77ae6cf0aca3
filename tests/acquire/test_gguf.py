from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quantize

from resprout.configs.errors import BadInput
from resprout.configs.schema import ModelConfig
from resprout.tasks.acquire.jobs import AcquireModel
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import WIDTHS, tiny_model

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
GEMMA_NAMES = {
    **NAMES, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary pair together; transformers keeps the halves apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path, quantised: bool, without: str | None = None, parts: int = 1, gemma: bool = False
) -> dict[str, torch.Tensor]:
    """A tiny llama or Gemma 3 as GGUF; returns the weights that a reader must find, by their names."""
    model = tiny_model("gemma3_text" if gemma else "llama", tie_word_embeddings=True)
    writer = GGUFWriter(str(path), "gemma3" if gemma else "llama")
    writer.add_license("apache-2.0")
    writer.add_uint16("split.count", parts)
    writer.add_block_count(WIDTHS["num_hidden_layers"])
    writer.add_context_length(WIDTHS["max_position_embeddings"])
    writer.add_embedding_length(WIDTHS["hidden_size"])
    writer.add_feed_forward_length(WIDTHS["intermediate_size"])
    writer.add_head_count(WIDTHS["num_attention_heads"])
    writer.add_head_count_kv(WIDTHS["num_key_value_heads"])
    writer.add_key_length(WIDTHS["head_dim"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WIDTHS["vocab_size"])
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0 if quantised else LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    tokens = [
        "<s>",
        "</s>",
        *(chr(33 + index) if index < 94 else f"tok{index}" for index in range(253)),
        "ab",
    ]
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * 254)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    expected = {}
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight", without):
            continue
        weight = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            target = f"blk.{layer}.{(GEMMA_NAMES if gemma else NAMES)[rest.removesuffix('.weight')]}.weight"
        heads = {"attn_q": 4, "attn_k": 2}.get(target.split(".")[-2])
        stored = rotary_order(weight, heads) if heads and not gemma else weight
        if gemma and weight.ndim == 1:
            stored = weight + 1  # llama.cpp keeps the factor of a norm, transformers its distance from one
        if quantised and weight.ndim == 2:
            packed = quantize(np.ascontiguousarray(stored), GGMLQuantizationType.Q8_0)
            writer.add_tensor(target, packed, raw_dtype=GGMLQuantizationType.Q8_0)
            plain = quantize(np.ascontiguousarray(weight), GGMLQuantizationType.Q8_0)
            expected[name] = torch.tensor(dequantize(plain, GGMLQuantizationType.Q8_0))
        else:
            writer.add_tensor(target, np.ascontiguousarray(stored))
            expected[name] = torch.tensor(weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("quantised", [False, True])
def test_weights_are_those_of_the_file(acquire, tmp_path, quantised):
    expected = write_gguf(tmp_path / "tiny.gguf", quantised)
    content, job = acquire(tmp_path / "tiny.gguf", dtype="float32")
    model = load_model(content, "float32", "cpu")
    found = model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings
    assert model.config.num_key_value_heads == 2
    assert json.loads((content / "tokenizer_config.json").read_text())["gguf_split"] == "smollm"
    about = json.loads((content / "source.json").read_text())
    # Q8_0 keeps 34 bytes for 32 weights.
    assert about["source_format"] == ("gguf:Q8_0" if quantised else "gguf:F32")
    assert about["source_bytes"] == (tmp_path / "tiny.gguf").stat().st_size
    assert job.licence_note() == "apache-2.0"
    assert load_tokenizer(content).chat_template == "{{ messages[0]['content'] }}"


def test_gemma_with_its_norms_around_zero_and_rotary_halves_apart(acquire, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", False, gemma=True)
    content, _ = acquire(tmp_path / "tiny.gguf", dtype="float32")
    model = load_model(content, "float32", "cpu")
    assert (model.config.model_type, model.config.head_dim) == ("gemma3_text", 16)
    found = model.state_dict()
    assert any("q_norm" in name for name in expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_the_dtype_is_the_configs(acquire, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", False)
    content, _ = acquire(tmp_path / "tiny.gguf", dtype="bfloat16")
    assert json.loads((content / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_same_file_elsewhere_gives_the_same_bytes_without_any_place_in_them(acquire, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    one, first = acquire(tmp_path / "tiny.gguf")
    two, second = acquire(tmp_path / "other" / "tiny.gguf")
    assert first.key_data() == second.key_data()
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        data = (one / name).read_bytes()
        assert data == (two / name).read_bytes()
        assert str(tmp_path).encode() not in data


def test_a_folder_with_one_file_is_that_file_and_with_two_is_ambiguous(context, acquire, tmp_path):
    (tmp_path / "ggufs").mkdir()
    write_gguf(tmp_path / "ggufs" / "a.gguf", False)
    (tmp_path / "b.gguf").write_bytes((tmp_path / "ggufs" / "a.gguf").read_bytes())
    acquire(tmp_path / "ggufs")
    (tmp_path / "b.gguf").rename(tmp_path / "ggufs" / "b.gguf")
    with pytest.raises(BadInput, match=r"several GGUF files; name one of them: a.gguf, b.gguf"):
        AcquireModel.pin(ModelConfig(source=str(tmp_path / "ggufs")), context)


@pytest.mark.parametrize("data", [b"GGML" + b"\x00" * 20, b"", b"GGUF\x03\x00"])
def test_what_is_no_gguf(context, tmp_path, data):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(BadInput, match=r"x\.gguf is (no|a damaged) GGUF file"):
        AcquireModel.pin(ModelConfig(source=str(tmp_path / "x.gguf")), context)


def test_an_unfinished_download(acquire, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", False)
    data = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"tiny\.gguf ends after .* fetch it again"):
        acquire(tmp_path / "tiny.gguf")


def test_an_architecture_that_nobody_knows(acquire, tmp_path):
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "notamodel")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadInput, match="architecture 'notamodel'"):
        acquire(tmp_path / "x.gguf")


def test_missing_weights_are_not_made_up(acquire, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", False, without="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(BadInput, match=r"tiny\.gguf lacks 1 of .*model\.layers\.1\.mlp\.down_proj\.weight"):
        acquire(tmp_path / "tiny.gguf")


def test_a_part_of_a_split_file(acquire, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", False, parts=2)
    with pytest.raises(BadInput, match=r"tiny\.gguf is one of 2 parts of a split GGUF file"):
        acquire(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("config", [False, True])
def test_no_part_of_a_split_file_is_advised(context, tmp_path, config):
    (tmp_path / "ggufs").mkdir()
    for part in (1, 2, 3):
        (tmp_path / "ggufs" / f"m-{part:05d}-of-00003.gguf").write_bytes(b"GGUF")
    if config:
        (tmp_path / "ggufs" / "config.json").write_text("{}")
    expected = "expected .safetensors files beside it$" if config else "join its parts with llama-gguf-split"
    with pytest.raises(BadInput, match=expected):
        AcquireModel.pin(ModelConfig(source=str(tmp_path / "ggufs")), context)
    with pytest.raises(BadInput, match=r"split GGUF file \(m-00002-of-00003\.gguf, \.\.\.\); join"):
        AcquireModel.pin(ModelConfig(source=str(tmp_path / "ggufs" / "m-00002-of-00003.gguf")), context)


def test_whole_files_beside_a_split_one(context, tmp_path):
    (tmp_path / "ggufs").mkdir()
    for name in ("a", "b-00001-of-00001", "c-00001-of-00002", "c-00002-of-00002"):
        (tmp_path / "ggufs" / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"name one of them: a\.gguf, b-00001-of-00001\.gguf$"):
        AcquireModel.pin(ModelConfig(source=str(tmp_path / "ggufs")), context)
