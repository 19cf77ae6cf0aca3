"""Families by formats: the page is fresh, and each cell of it writes and passes the format's probe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.tasks.export.format import entry
from resprout.tasks.export.format import format_of as export_format
from resprout.tasks.export.probe import Question, probe
from resprout.tasks.export.support import stock_shape, supported, table
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.layouts import cut_class, write_shape
from resprout.tasks.models.load import load_model, load_tokenizer, save_model
from resprout.tasks.models.shape import shape_of
from resprout.tasks.quantize.format import format_of
from tiny_export import write_recovery
from tiny_models import FITTING, tiny_model, write_byte_tokenizer

PAGE = Path(__file__).parents[2] / "configs" / "formats.md"
QUESTION = Question(["the cat", "a", "this and that", "x y z", "the end of the"], 1, "float32", "cpu", 1)
TYPES = {
    "gguf": "gguf:F32",
    "onnx": "onnx:F32",
    "compressed-tensors": "compressed-tensors:W8A16",
    "torchao": "torchao:INT8",
}
QUICK = ("gguf",)
"""Formats of which every cell is tried by default; of others a few are, where they are tested."""


def cells() -> list[Any]:
    """Family, format and layout of each claim."""
    return [
        pytest.param(family, name, layout, marks=[] if name in QUICK else pytest.mark.matrix)
        for family in sorted(FAMILIES)
        for name, layouts in supported(family, stock_shape(family)).layouts.items()
        for layout in layouts
    ]


def model_of(family: str, layout: str) -> Any:
    """A tiny model of the family; per_layer: its layers have FFNs of different widths."""
    model = tiny_model(family, **FITTING.get(family, {}))
    if layout == "uniform":
        return model
    shape = shape_of(model.config.to_dict())
    unit = "experts" if shape.experts else "ffn"
    counts = shape.experts if shape.experts else shape.ffn
    write_shape(model.config, shape.with_counts(unit, (counts[0] // 2, *counts[1:])))
    made = cut_class(type(model))(model.config).eval()
    # Layers of other widths come with whatever lay in memory.
    torch.manual_seed(3)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return made


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == table() + "\n", "run resprout methods --formats > configs/formats.md"


@pytest.mark.parametrize(("family", "name", "layout"), cells())
def test_each_claimed_cell_writes_and_passes_its_probe(
    family: str, name: str, layout: str, tmp_path: Path
) -> None:
    source, made, folder = (tmp_path / part for part in ("source", "made", "export"))
    write_byte_tokenizer(tmp_path / "tokenizer")
    save_model(model_of(family, layout), source, tokenizer_from=tmp_path / "tokenizer")
    # Beside a config some families' tokenizers add tokens of their own.
    model, tokenizer = load_model(source, "float32", "cpu"), load_tokenizer(tmp_path / "tokenizer")
    typed = TYPES.get(name, name)
    form = export_format(typed)
    folder.mkdir()
    if entry(name).declared["adapters"]:
        write_recovery(source, tmp_path / "recovery", tmp_path / "tokenizer")
        made = form.source(name, {"recovery": tmp_path / "recovery", "pruned": source})
        model = load_model(tmp_path / "recovery" / "model", "float32", "cpu")
    expected = probe(model, tokenizer, QUESTION)
    if entry(name).declared["quantized"]:
        made.mkdir()
        silent = lambda *seen: None  # noqa: E731
        format_of(typed).write(load_model(source, "float32", "cpu"), tokenizer, source, made, {}, {}, silent)
    form.write(model, made if made.exists() else source, folder)
    assert form.compare(expected, form.probe(folder, QUESTION), 1e-5)
