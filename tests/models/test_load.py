"""A model folder goes through memory unchanged; folders that cannot be loaded say why."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput
from resprout.tasks.models.load import check_weights, load_model, load_tokenizer, save_model


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_save_and_load_keep_every_logit_and_byte(family, tiny, tokenizer_folder, tmp_path):
    model = tiny(family)
    save_model(model, tmp_path / "a", tokenizer_folder)
    loaded = load_model(tmp_path / "a", "float32", "cpu")
    ids = torch.arange(4, 36).reshape(2, 16)
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    save_model(loaded, tmp_path / "b", tmp_path / "a")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "b" / "config.json").read_text()


def test_tiny_models_follow_their_seed_and_leave_the_global_one(tiny):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = tiny("llama", 1), tiny("llama", 1), tiny("llama", 2)
    assert torch.equal(torch.rand(1), expected)
    weights = [next(model.parameters()) for model in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_broken_layout_says_what_is_wrong(tiny, tokenizer_folder, tmp_path):
    model = tiny("llama")
    model.config.resprout_layout = {"intermediate_size": [128], "num_key_value_heads": [2, 2]}
    save_model(model, tmp_path / "a", tokenizer_folder)
    with pytest.raises(
        BadInput,
        match="must list intermediate_size and num_key_value_heads, whole numbers from 0, for each of the 2",
    ):
        load_model(tmp_path / "a", "float32", "cpu")


def test_dtype_is_the_one_asked_for(tiny, tokenizer_folder, tmp_path):
    save_model(tiny("llama"), tmp_path / "a", tokenizer_folder)
    assert load_model(tmp_path / "a", "bfloat16", "cpu").dtype == torch.bfloat16
    with pytest.raises(BadInput, match=r"float64.*bfloat16"):
        load_model(tmp_path / "a", "float64", "cpu")


def test_tokenizer_travels_with_the_model(tiny, tokenizer_folder, tmp_path):
    save_model(tiny("llama"), tmp_path / "a", tokenizer_folder)
    assert load_tokenizer(tmp_path / "a")("w9 w200").input_ids == [9, 200]


def test_tied_weights_stay_tied(tiny, tokenizer_folder, tmp_path):
    save_model(tiny("qwen2", tie_word_embeddings=True), tmp_path / "a", tokenizer_folder)
    loaded = load_model(tmp_path / "a", "float32", "cpu")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "not valid JSON"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "no .safetensors file but pytorch_model.bin"),
    ],
)
def test_folder_that_cannot_be_loaded(files, says, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=says):
        load_model(tmp_path, "float32", "cpu")


@pytest.mark.parametrize(
    ("name", "text"),
    [("tokenizer_config.json", "[]"), ("tokenizer.json", "[" * 100_000), ("tokenizer.json", "{}")],
)
def test_tokenizer_that_cannot_be_loaded(name, text, tokenizer_folder, tmp_path):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "a")
    (folder / name).write_text(text)
    with pytest.raises(BadInput, match=r"the tokenizer in .*a cannot be loaded \(.*; write"):
        load_tokenizer(folder)


def test_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(BadInput, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"lacks 1 of .*layers\.1\.mlp\.up_proj"),
        (lambda t: t.pop("lm_head.weight"), r"lacks 1 of the weights .*\(lm_head\.weight\)"),
        (
            lambda t: [t.pop(name) for name in sorted(t) if "layers.0" in name],
            r"lacks 9 of .*input_layernorm\.weight, .*, \.\.\.\); give the whole model",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
            r"other shapes for 1 of .*model\.norm\.weight \(\[3\] instead of \[64\]\)",
        ),
    ],
)
def test_missing_weights_are_not_made_up(tiny, tokenizer_folder, tmp_path, cut, spoil, says):
    model = tiny("llama")
    if cut:
        model.config.resprout_layout = {"intermediate_size": [128, 128], "num_key_value_heads": [2, 2]}
    save_model(model, tmp_path / "a", tokenizer_folder)
    check_weights(tmp_path / "a", "the model")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    spoil(tensors)
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=f"the model (lacks|has) .*{says.partition(' ')[2]}"):
        check_weights(tmp_path / "a", "the model")
    with pytest.raises(BadInput, match=says):
        load_model(tmp_path / "a", "float32", "cpu")


def test_weights_that_transformers_cannot_place_say_so(tiny, tokenizer_folder, tmp_path):
    save_model(tiny("llama"), tmp_path / "a", tokenizer_folder)
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "other.safetensors")
    with pytest.raises(BadInput, match=r"transformers cannot load the model \(.*no file named"):
        check_weights(tmp_path / "a", "the model")


def test_tied_weights_are_not_missing(tiny, tokenizer_folder, tmp_path):
    save_model(tiny("qwen2", tie_word_embeddings=True), tmp_path / "a", tokenizer_folder)
    assert "lm_head.weight" not in load_file(tmp_path / "a" / "model.safetensors")
    check_weights(tmp_path / "a", "the model")


def test_code_that_comes_with_a_tokenizer_is_not_run_nor_asked_about(tokenizer_folder, tmp_path, monkeypatch):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import PreTrainedTokenizerFast\n"
        f"Path({str(ran)!r}).touch()\nclass Own(PreTrainedTokenizerFast): pass\n"
    )
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    stated |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    found = None
    try:
        load_tokenizer(folder)
    except BadInput as error:
        found = str(error)
    assert not ran.exists()
    assert found is not None
    assert "set model.trust_remote_code: true" in found
    assert type(load_tokenizer(folder, trust_remote_code=True)).__name__ == "Own"
    assert ran.exists()
