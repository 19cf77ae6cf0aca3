"""An export of torchao counts when stock transformers computes what 8-bit integers keep of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import ExportConfig
from resprout.tasks.core.job import silent
from resprout.tasks.export import stage
from resprout.tasks.export.format import entry, usage
from resprout.tasks.export.formats.torchao import TOLERANCE_NATS, TorchAo
from resprout.tasks.export.probe import Question, probe
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.packed.checkpoint import load_served
from resprout.tasks.quantize.format import format_of
from resprout.tasks.quantize.formats.torchao import TorchAo as Quantized
from resprout.tasks.torchao import library
from resprout.tasks.torchao.library import require_torchao
from tiny_models import write_tiny_folder

QUESTION = Question(["w5 w6", "w7", "w8 w9 w10", "w11 w12", "w200 w201"], 5, "bfloat16", "cpu", 1)


def made(root: Path, kind: str) -> tuple[Path, Path]:
    """A model, and its checkpoint as `quantize` leaves it."""
    model, out = write_tiny_folder(root / "model", "qwen3", dtype="bfloat16"), root / "quantized"
    out.mkdir()
    loaded = load_model(model, "bfloat16", "cpu")
    metrics = format_of(f"torchao:{kind}").write(loaded, load_tokenizer(model), model, out, {}, {}, silent)
    (out / "metrics.json").write_text(json.dumps(dict(metrics)))
    return model, out


@pytest.mark.parametrize("kind", Quantized.types)
def test_stock_transformers_answers_as_the_model_within_the_tolerance(kind: str, tmp_path: Path) -> None:
    model, quantized = made(tmp_path, kind)
    whole, form, folder = load_model(model, "bfloat16", "cpu"), TorchAo(kind.lower()), tmp_path / "out"
    folder.mkdir()
    form.write(whole, quantized, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    expected = probe(whole, load_tokenizer(model), QUESTION)
    found = form.probe(folder, QUESTION)
    served = probe(load_served(folder, "bfloat16", "cpu"), load_tokenizer(folder), QUESTION)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, served.logits, strict=True))
    assert found.greedy_ids == served.greedy_ids
    compared = form.compare(expected, found, 0.0)
    assert 0 < compared["mean_kl_nats"] < 1e-3
    assert 0.5 < compared["greedy_agreement"] <= 1


def test_a_checkpoint_of_other_weights_is_discarded(tmp_path: Path) -> None:
    model, quantized = made(tmp_path, "INT8")
    form = TorchAo("INT8")
    path = quantized / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    # Logits of a random model are all alike; these are not.
    tensors["model.norm.weight"] *= 50
    save_file(tensors, path, metadata=metadata)
    expected = probe(load_model(model, "bfloat16", "cpu"), load_tokenizer(model), QUESTION)
    found = probe(load_served(quantized, "bfloat16", "cpu"), load_tokenizer(model), QUESTION)
    with pytest.raises(StageFailed, match=r"torchao:INT8 export diverges by .* nats .* 0\.05 are allowed"):
        form.compare(expected, found, 0.0)


def test_it_is_named_checked_and_loaded_as_the_quantised_format() -> None:
    assert TOLERANCE_NATS.keys() == set(Quantized.types) == set(library.TYPES)
    assert entry("torchao:INT8").declared["quantized"] is True
    assert "with torchao installed" in usage("torchao:INT8", "here", chat=False)[0]


@pytest.mark.parametrize("name", ["torchao:INT8", "compressed-tensors:W8A16"])
def test_an_export_without_the_library_is_refused_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = library
    if name.startswith("compressed"):
        from resprout.tasks.compressed_tensors import library as other

        room = other
    require = getattr(room, f"require_{room.__name__.split('.')[-2]}")
    monkeypatch.setattr(room, "PACKAGE", "no_such_package")
    require.cache_clear()
    with pytest.raises(BadInput, match=r"not installed; pip install [\w-]+==\d"):
        stage.check(ExportConfig(formats=(name,)), Path())
    monkeypatch.undo()
    require.cache_clear()
    require_torchao()
