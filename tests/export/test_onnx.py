"""ONNX exports: ONNX Runtime computes what the model does, with a cache, for families and layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.export.formats import onnx
from resprout.tasks.export.formats.onnx import Onnx
from resprout.tasks.export.probe import Probed, Question, probe
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.layouts import cut_class, write_shape
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.models.shape import shape_of
from tiny_models import tiny_model, write_byte_tokenizer

PROMPTS = ["the cat", "a", "this and that", "x y z", "the end of the"]
QUESTION = Question(PROMPTS, 4, "float32", "cpu", 1)


def exported(root: Path, model: Any, name: str = "onnx") -> tuple[Probed, Probed]:
    """Answers of the model, and of its export in ONNX Runtime."""
    write_byte_tokenizer(root / "tokenizer")
    (root / name).mkdir()
    form = Onnx()
    form.write(model, root / "tokenizer", root / name)
    found = form.probe(root / name, QUESTION)
    expected = probe(model, load_tokenizer(root / "tokenizer"), QUESTION)
    form.compare(expected, found, 0.0)
    return expected, found


WINDOWED = ("gemma2", "gemma3_text", "mistral")
"""Families whose tiny models attend to windows."""


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WINDOWED)))
def test_a_family_computes_the_same(family: str, tmp_path: Path) -> None:
    expected, found = exported(tmp_path, tiny_model(family))
    assert max((a - b).abs().max() for a, b in zip(expected.logits, found.logits, strict=True)) < 1e-5
    assert found.greedy_ids == expected.greedy_ids


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_that_the_exporter_does_not_keep_are_refused(family: str) -> None:
    shape = shape_of(tiny_model(family).config.to_dict())
    with pytest.raises(BadInput, match=r"attends to windows of \d+ tokens, which transformers' exporter"):
        Onnx().check(shape)
    Onnx().check(replace(shape, config={**shape.config, "sliding_window": None}))


def test_a_layer_without_attention_is_refused() -> None:
    shape = shape_of(tiny_model("llama").config.to_dict())
    with pytest.raises(BadInput, match="layer 1 has no attention"):
        Onnx().check(shape.with_counts("kv_groups", (2, 0)))


def test_layers_of_different_widths_and_without_an_ffn_are_held(tmp_path: Path) -> None:
    config = tiny_model("llama").config
    shape = shape_of(config.to_dict()).with_counts("ffn", (96, 0)).with_counts("kv_groups", (1, 2))
    write_shape(config, shape)
    torch.manual_seed(3)
    expected, found = exported(tmp_path, cut_class(type(tiny_model("llama")))(config).eval())
    assert max((a - b).abs().max() for a, b in zip(expected.logits, found.logits, strict=True)) < 1e-5


def test_equal_models_give_equal_bytes_without_paths_of_this_machine(tmp_path: Path) -> None:
    for name in ("first", "second"):
        exported(tmp_path, tiny_model("llama"), name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == [
        "config.json", "export.json", "generation_config.json", "model.onnx", "model.onnx.data",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for file in files:
        first, second = ((tmp_path / name / file).read_bytes() for name in ("first", "second"))
        assert first == second, file
        assert b".py" not in first
        assert str(tmp_path).encode() not in first


def test_an_export_that_computes_something_else_is_discarded(tmp_path: Path) -> None:
    expected, found = exported(tmp_path, tiny_model("llama"))
    form = Onnx()
    form.tolerance = 1e-3
    others = [logits + 0.01 for logits in found.logits]
    with pytest.raises(StageFailed, match="logits of the onnx export differ"):
        form.compare(expected, replace(found, logits=others), 0.0)
    data = tmp_path / "onnx" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(StageFailed, match="ONNX Runtime cannot load and run the onnx export"):
        form.probe(tmp_path / "onnx", QUESTION)


def test_what_it_cannot_take_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="give onnx, not onnx:int8"):
        Onnx("int8")
    with pytest.raises(BadInput, match=r"takes float32 and float16, .* model.dtype is bfloat16"):
        exported(tmp_path, tiny_model("llama", dtype="bfloat16"))
    monkeypatch.setattr(onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(BadInput, match=r"needs no_such_package, not installed here; pip install"):
        Onnx().require()
