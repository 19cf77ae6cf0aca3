"""An export in few bits counts when stock transformers computes of it what the type can keep of the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.job import silent
from resprout.tasks.export.format import FORMATS, divergence, entry, usage
from resprout.tasks.export.formats.compressed_tensors import TOLERANCE_NATS, CompressedTensors
from resprout.tasks.export.probe import Probed, Question, probe
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.packed.checkpoint import load_served
from resprout.tasks.quantize.format import format_of
from resprout.tasks.quantize.formats.compressed_tensors import CompressedTensors as Quantized
from tiny_models import write_tiny_folder

QUESTION = Question(["w5 w6", "w7", "w8 w9 w10", "w11 w12", "w200 w201"], 5, "bfloat16", "cpu", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and its checkpoint as `quantize` leaves it."""
    root = tmp_path_factory.mktemp("made")
    model = write_tiny_folder(root / "model", "qwen3", dtype="bfloat16")
    out = root / "quantized"
    out.mkdir()
    loaded = load_model(model, "bfloat16", "cpu")
    form = format_of("compressed-tensors:W8A16")
    metrics = form.write(loaded, load_tokenizer(model), model, out, {}, {}, silent)
    (out / "metrics.json").write_text(json.dumps(dict(metrics)))
    return model, out


def test_stock_transformers_answers_as_the_model_within_the_tolerance(made, tmp_path: Path) -> None:
    model, quantized = made
    whole, form, folder = load_model(model, "bfloat16", "cpu"), CompressedTensors("w8a16"), tmp_path / "out"
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
    compared = form.compare(expected, found, 0.0)
    assert 0 < compared["mean_kl_nats"] < 1e-3
    assert 0.5 < compared["greedy_agreement"] <= 1


def test_a_checkpoint_of_other_weights_is_discarded(made, tmp_path: Path) -> None:
    model, quantized = made
    form = CompressedTensors("W8A16")
    form.write(load_model(model, "bfloat16", "cpu"), quantized, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    # Logits of a random model are all alike; these are not.
    tensors["model.norm.weight"] *= 50
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = probe(load_model(model, "bfloat16", "cpu"), load_tokenizer(model), QUESTION)
    with pytest.raises(StageFailed, match=r"W8A16 export diverges by .* nats .* 0\.05 are allowed"):
        form.compare(expected, form.probe(tmp_path, QUESTION), 0.0)


def test_a_checkpoint_that_does_not_load_is_discarded(made, tmp_path: Path) -> None:
    model, quantized = made
    form = CompressedTensors("W8A16")
    form.write(load_model(model, "bfloat16", "cpu"), quantized, tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(StageFailed, match="transformers with stock classes cannot load and run the export"):
        form.probe(tmp_path, QUESTION)


def test_divergence_by_hand() -> None:
    def answers(logits: list[float], ids: tuple[int, ...] = (1,), greedy: tuple[int, ...] = (3, 4)) -> Probed:
        return Probed([list(ids)], [torch.tensor([logits]).log()], [list(greedy)])

    half = answers([0.5, 0.5])
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
    found = divergence("x", half, answers([0.25, 0.75], greedy=(3, 5)), 0.2)
    assert found == {"mean_kl_nats": pytest.approx(0.1438410), "greedy_agreement": 0.5}
    for other, says in (
        (answers([0.25, 0.75], ids=(2,)), "tokenizes the prompts differently"),
        (answers([0.2, 0.3, 0.5]), "another vocabulary"),
        (answers([0.25, 0.75]), r"diverges by 0\.1438 nats .* 0\.1 are allowed"),
        (answers([float("nan"), 1.0]), "diverges by nan"),
    ):
        with pytest.raises(StageFailed, match=says):
            divergence("x", half, other, 0.1)


def test_every_type_has_a_tolerance_and_the_name_is_the_quantised_formats() -> None:
    for kind in Quantized.types:
        assert kind.partition("-")[0] in TOLERANCE_NATS
    assert "compressed-tensors" in FORMATS
    assert entry("compressed-tensors:W8A16").declared["quantized"] is True
    assert "from_pretrained(here)" in usage("compressed-tensors:W8A16", "here", chat=False)[1]
    with pytest.raises(BadInput, match="did you mean 'compressed-tensors'"):
        entry("compressed_tensors:W8A16")
