"""Graphs compute what their models do, with a cache: families, layouts, types; equal models, equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.layouts import cut_class, write_shape
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.models.shape import shape_of
from resprout.tasks.onnx_runtime.library import FILE
from resprout.tasks.onnx_runtime.session import Session
from resprout.tasks.quantize.format import format_of
from tiny_models import tiny_model, write_byte_tokenizer

IDS = [[(place * 37 + row) % 256 for place in range(12)] for row in range(2)]
WINDOWED = ("gemma2", "gemma3_text", "mistral")
"""Families whose tiny models attend to windows."""
QUICK = ("gpt2", "gpt_neox", "qwen3_moe")
"""One of each kind: transposed matrices, parallel layers with half-rotated heads, experts."""


def written(root: Path, model: Any, kind: str = "F32", name: str = "onnx") -> Path:
    """The folder of a model's graph."""
    write_byte_tokenizer(root / "tokenizer")
    folder = root / name
    folder.mkdir()
    tokenizer = load_tokenizer(root / "tokenizer")
    format_of(f"onnx:{kind}").write(model, tokenizer, root / "tokenizer", folder, {}, {}, lambda *seen: None)
    return folder


def difference(model: Any, folder: Path) -> float:
    """Largest of a logit, of two rows that are read in two parts, one behind the cache of the other."""
    session = Session(folder / FILE, 1)
    found = np.concatenate(
        [session.read([row[:7] for row in IDS]), session.read([row[7:] for row in IDS])], 1
    )
    with torch.no_grad():
        wanted = model(torch.tensor(IDS)).logits.float()
    return float((torch.from_numpy(found) - wanted).abs().max())


def one_layer(family: str) -> Any:
    return tiny_model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})


@pytest.mark.parametrize("family", QUICK)
def test_a_family_computes_the_same(family: str, tmp_path: Path) -> None:
    model = one_layer(family)
    assert difference(model, written(tmp_path, model)) < 1e-5


@pytest.mark.matrix
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {*WINDOWED, *QUICK}))
def test_every_other_family_computes_the_same(family: str, tmp_path: Path) -> None:
    model = one_layer(family)
    assert difference(model, written(tmp_path, model)) < 1e-5


def test_layers_of_different_widths_and_without_an_ffn_are_held(tmp_path: Path) -> None:
    config = tiny_model("llama").config
    shape = shape_of(config.to_dict()).with_counts("ffn", (96, 0)).with_counts("kv_groups", (1, 2))
    write_shape(config, shape)
    torch.manual_seed(3)
    model = cut_class(type(tiny_model("llama")))(config).eval()
    assert difference(model, written(tmp_path, model)) < 1e-5


def test_equal_models_give_equal_bytes_without_paths_of_this_machine(tmp_path: Path) -> None:
    for name in ("first", "second"):
        written(tmp_path, one_layer("llama"), name=name)
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


def test_half_precision_is_near_and_takes_half_the_bytes(tmp_path: Path) -> None:
    model = one_layer("llama")
    whole = sum(one.numel() for one in model.parameters()) * 4
    folder = written(tmp_path, model, "F16")
    assert 0.45 < (folder / "model.onnx.data").stat().st_size / whole < 0.55
    assert 1e-6 < difference(one_layer("llama"), folder) < 0.02
