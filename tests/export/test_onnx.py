"""ONNX exports: copied as they were judged, checked in a clean process, discarded where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resprout.configs.errors import StageFailed
from resprout.tasks.export.format import BESIDE
from resprout.tasks.export.formats.onnx import Onnx
from resprout.tasks.export.probe import Question, probe
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.onnx_runtime.graph import write_graph
from tiny_models import tiny_model, write_byte_tokenizer

PROMPTS = ["the cat", "a", "this and that", "x y z", "the end of the"]
QUESTION = Question(PROMPTS, 4, "float32", "cpu", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quantize` leaves."""
    root: Path = tmp_path_factory.mktemp("made")
    write_byte_tokenizer(root / "tokenizer")
    (root / "onnx").mkdir()
    write_graph(tiny_model("llama"), root / "tokenizer", root / "onnx", torch.float32)
    (root / "onnx" / BESIDE).write_text(json.dumps({"bytes": 1}))
    return root


def test_an_export_is_the_judged_file_and_one_that_computes_something_else_is_discarded(
    made: Path, tmp_path: Path
) -> None:
    model, form = tiny_model("llama"), Onnx("F32")
    form.write(model, made / "onnx", tmp_path)
    assert sorted(one.name for one in (made / "onnx").iterdir() if one.name != BESIDE) == sorted(
        one.name for one in tmp_path.iterdir()
    )
    found = form.probe(tmp_path, QUESTION)
    expected = probe(model, load_tokenizer(tmp_path), QUESTION)
    assert form.compare(expected, found, 0.0)["max_abs_logit_diff"] < 1e-5
    others = replace(found, logits=[logits + 0.01 for logits in found.logits])
    with pytest.raises(StageFailed, match="logits of the onnx:F32 export differ"):
        form.compare(expected, others, 0.0)
    # A model that computed in half precision is held by what half precision explains, which no shift is.
    form.probe(tmp_path, replace(QUESTION, dtype="float16"))
    assert form.compare(expected, others, 0.0)["mean_kl_nats"] < 1e-6
    with pytest.raises(StageFailed, match=r"the onnx:F32 export diverges by .* nats"):
        form.compare(expected, replace(found, logits=[logits * 2 for logits in found.logits]), 0.0)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(StageFailed, match="ONNX Runtime cannot load and run the onnx export"):
        form.probe(tmp_path, QUESTION)
