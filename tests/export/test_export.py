"""An export counts only when stock transformers, without resprout, computes what the model does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import ExportConfig, PruneConfig
from resprout.tasks.export import probe as script
from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.probe import Probed
from resprout.tasks.export.stage import export
from resprout.tasks.export.verify import largest_difference
from resprout.tasks.job import Job, silent
from resprout.tasks.models.load import load_model
from resprout.tasks.prune.apply import apply
from resprout.tasks.prune.make_plan import make_plan
from tiny_models import tiny_model, write_tiny_folder

CONFIG = ExportConfig(prompts=("w5 w6", "w7", "w8 w9 w10", "w11 w12", "w200 w201"), greedy_tokens=5)


def run(model: Path, workdir: Path, config=CONFIG):
    workdir.mkdir()
    export.body(Job(config), {"model": model}, workdir, silent)


def digests(workdir):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (workdir / "hf").iterdir()}


def test_hf_export_is_verified_and_equal_runs_give_equal_bytes(tmp_path):
    model = write_tiny_folder(tmp_path / "model", "qwen3", dtype="bfloat16")
    run(model, tmp_path / "first")
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert digests(tmp_path / "first").keys() == files | {"tokenizer_config.json"}
    HuggingFace().write(load_model(model, "bfloat16", "cpu"), model, tmp_path / "second" / "hf")
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    size = sum(p.stat().st_size for p in (tmp_path / "first" / "hf").iterdir())
    assert json.loads((tmp_path / "first" / "exports.json").read_text()) == [
        {"format": "hf", "path": "hf", "bytes": size, "verified": True, "max_abs_logit_diff": 0.0}
    ]
    metrics = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert metrics == {"hf_bytes": size, "hf_max_abs_logit_diff": 0.0}
    assert load_model(tmp_path / "first" / "hf", "bfloat16", "cpu").dtype == torch.bfloat16


def tamper_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tamper_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def tamper_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"w5": 5,', '"w5": 6,').replace('"w6": 6,', '"w6": 5,')
    )


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (tamper_weight, r"logits of the hf export differ by up to 0\.\d+ .* allows 0;"),
        (tamper_width, "stock transformers cannot load and run the hf export"),
        (tamper_tokenizer, "tokenizes the prompts differently"),
    ],
)
def test_a_tampered_export_fails(tamper, says, tmp_path, monkeypatch):
    model = write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    write = HuggingFace.write

    def write_then_tamper(self, model, source, folder):
        write(self, model, source, folder)
        tamper(folder)

    monkeypatch.setattr(HuggingFace, "write", write_then_tamper)
    with pytest.raises(StageFailed, match=says):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out" / "exports.json").exists()


def answers(logit=0.0, ids=(1, 2), greedy=(3,)):
    return Probed([list(ids)], [torch.tensor([[logit, 1.0]])], [list(greedy)])


def test_differences_by_hand():
    assert largest_difference("hf", answers(), answers(logit=0.25), bound=0.25) == 0.25
    for found, says in (
        (answers(logit=0.5), "up to 0.5"),
        (answers(logit=float("nan")), "up to nan"),
        (answers(greedy=(4,)), "continues prompt 0 otherwise"),
        (answers(ids=(1, 3)), "tokenizes"),
        (Probed([[1, 2]], [torch.zeros(1, 3)], [[3]]), "shapes"),
    ):
        with pytest.raises(StageFailed, match=says):
            largest_difference("hf", answers(), found, bound=0.25)


def test_layers_that_differ_are_refused(tmp_path):
    model = tiny_model("llama")
    config = {"target": {"params_ratio": 0.85}, "round_to": 4, "layout": "per_layer", "repair": "none"}
    ids = torch.arange(4, 68).reshape(4, 16)
    plan, _ = make_plan(model, PruneConfig.model_validate(config), ids)
    assert len({len(layer.ffn) for layer in plan.layers}) == 2
    apply(model, plan)
    with pytest.raises(BadInput, match="layout: uniform, or leave hf out"):
        HuggingFace().write(model, tmp_path, tmp_path / "out")


def test_no_formats_is_an_empty_export(tmp_path):
    run(tmp_path / "absent", tmp_path / "out", ExportConfig(formats=()))
    assert json.loads((tmp_path / "out" / "exports.json").read_text()) == []


def test_the_child_cannot_import_resprout():
    """The suite itself runs where resprout is installed: -I alone would let the child import it."""
    code = f"import runpy; runpy.run_path({script.__file__!r})['refuse_resprout'](); import resprout.tasks"
    child = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert child.returncode == 1
    assert "No module named 'resprout" in child.stderr


def test_the_door_imports_no_torch():
    code = "import sys, resprout.tasks.export.stage; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
