"""Every stage that runs a model writes the same bytes with its layers on disk as with all in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import (
    CalibrateConfig,
    DraftConfig,
    EvaluateConfig,
    ExportConfig,
    PruneConfig,
    QuantizeConfig,
    SparsifyConfig,
    TextSource,
)
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.compressed_tensors.types import tensors_type
from resprout.tasks.core.job import Job, silent
from resprout.tasks.draft.stage import draft
from resprout.tasks.evaluate.stage import evaluate
from resprout.tasks.export.stage import Export, export
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_for, save_model
from resprout.tasks.prune.stage import plan, prune, score
from resprout.tasks.quantize.grid import Grid
from resprout.tasks.quantize.rounding import round_layers
from resprout.tasks.quantize.stage import Quantization, importance, quantize
from resprout.tasks.sparsify.stage import sparsify
from tiny_export import scores_of, write_plan
from tiny_models import FITTING, layout_for, write_byte_tokenizer, write_tiny_folder
from tiny_run import TWO_CHOICES

IDS = torch.randint(4, 256, (6, 24), generator=torch.Generator().manual_seed(2))
SOME = ("llama", "gpt2", "gemma3_text", "mixtral")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """What stages read, but for the models."""
    for name in ("text", "task_own", "calibration"):
        (tmp_path / name).mkdir()
    document = " ".join(f"w{4 + index * 7 % 200}" for index in range(400))
    (tmp_path / "text" / "text.jsonl").write_text(json.dumps({"text": document, "source": "t"}) + "\n")
    (tmp_path / "task_own" / "task.json").write_text(json.dumps(TWO_CHOICES))
    rows = [
        {"question": f"w{5 + i} w{9 + i}", "a": f"w{20 + i}", "b": "w7", "label": i % 2} for i in range(6)
    ]
    (tmp_path / "task_own" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"input_ids": IDS}, tmp_path / "calibration" / "calibration.safetensors")
    return {name: tmp_path / name for name in ("text", "task_own", "calibration")}


def written(stage: Any, config: Any, inputs: dict[str, Path], out: Path, **job: Any) -> dict[str, bytes]:
    """The files that a call of a stage leaves in `out`."""
    out.mkdir()
    digests = {role: role[0] * 64 for role in inputs}
    stage.body(Job(config, digests=digests, **job), inputs, out, silent)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def both(stage: Any, config: Any, inputs: dict[str, Path], root: Path) -> dict[str, bytes]:
    """What a stage writes with its models in memory, which is what it writes with them on disk."""
    name = stage.name
    whole = written(stage, config, inputs, root / f"{name}-whole")
    assert written(stage, config, inputs, root / f"{name}-spread", max_memory={"cpu": 4096}) == whole
    return whole


@pytest.mark.parametrize("family", SOME)
def test_evaluate(family: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    inputs["dense"] = write_tiny_folder(tmp_path / "dense", family, dtype="bfloat16")
    inputs["model"] = write_tiny_folder(tmp_path / "model", family, seed=1, dtype="bfloat16")
    asked = {
        "perplexity": {"name": "words", "text": [{"source": "x"}], "window_tokens": 16},
        "zero_shot": {"tasks": [{"task": "own.yaml", "data": {"source": "x"}}], "batch_size": 4},
        "prompts": ["w5 w6", "w7"],
    }
    found = json.loads(both(evaluate, EvaluateConfig.model_validate(asked), inputs, tmp_path)["metrics.json"])
    assert {"words_ppl_seq16", "words_kl_to_dense_seq16", "own_acc"} <= found.keys()


@pytest.mark.parametrize("method", ["cola", "self_generated"])
def test_calibrate(method: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    config = CalibrateConfig(
        method=method, text=(TextSource(source="x"),), samples=6, seq_len_tokens=16, projection_dim=8
    )
    inputs["model"] = write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    both(calibrate, config, inputs, tmp_path)


@pytest.mark.parametrize("family", SOME)
def test_score_plan_and_prune(family: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    fused = "experts" in FAMILIES[family].units
    given = {"method": "magnitude" if fused else "flap", "units": ["ffn"], "target": {"params_ratio": 0.96}}
    given |= {"round_to": 8, "repair": "none" if fused else "least_squares"} | layout_for(family, ["ffn"])
    config = PruneConfig.model_validate(given)
    inputs["model"] = write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    for role, stage in (("scores", score), ("plan", plan), ("pruned", prune)):
        both(stage, config, inputs, tmp_path)
        inputs[role] = tmp_path / f"{stage.name}-spread"


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_sparsify(method: str, family: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    if method == "wanda" and "experts" in FAMILIES[family].units:
        method = "magnitude"
    config = SparsifyConfig(method=method, pattern="2:4")
    inputs["model"] = write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    both(sparsify, config, inputs, tmp_path)


@pytest.mark.parametrize("family", SOME)
def test_quantize_to_gguf(family: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    config = QuantizeConfig(formats=("gguf:Q4_0",))
    fitting = FITTING.get(family, {})
    inputs["model"] = write_tiny_folder(tmp_path / "model", family, dtype="bfloat16", **fitting)
    write_byte_tokenizer(inputs["model"])
    both(importance, config, inputs, tmp_path)
    inputs["importance"] = tmp_path / "importance-spread"
    both(quantize, Quantization(config, "gguf:Q4_0"), inputs, tmp_path)


def test_a_format_that_packs_the_whole_model_says_so(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["model"] = write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    config = Quantization(None, "compressed-tensors:W8A16")
    with pytest.raises(BadInput, match="quantizing to compressed-tensors:W8A16 needs all weights"):
        written(quantize, config, inputs, tmp_path / "out", max_memory={"cpu": 4096})


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gptq(family: str, tmp_path: Path) -> None:
    """Rounded layers are kept: the model computes with them, and saves them."""
    write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    models = [load_for(Job(None, max_memory=room), tmp_path / "model") for room in (None, {"cpu": 4096})]
    scales = [round_layers(model, Grid(tensors_type("W4A16-G32"), torch.bfloat16), IDS) for model in models]
    assert scales[0].keys() == scales[1].keys()
    assert all(torch.equal(one, scales[1][name]) for name, one in scales[0].items())
    with torch.no_grad():
        before = load_for(Job(None), tmp_path / "model")(IDS).logits
        logits = [model(IDS).logits for model in models]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], before)
    for model, name in zip(models, ("whole", "spread"), strict=True):
        save_model(model, tmp_path / name, tokenizer_from=tmp_path / "model")
    assert_same_files(tmp_path / "whole", tmp_path / "spread")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_saved_folders_are_alike_also_in_shards(family: str, tmp_path: Path, monkeypatch: Any) -> None:
    write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    model, spread = (load_for(Job(None, max_memory=room), tmp_path / "model") for room in (None, {"cpu": 0}))
    model.save_pretrained(tmp_path / "whole", max_shard_size="60KB")
    monkeypatch.setattr("resprout.tasks.models.offload.SHARD", "60KB")
    save_model(spread, tmp_path / "spread", tokenizer_from=tmp_path / "whole")
    assert len([*(tmp_path / "whole").glob("*.safetensors")]) > 2
    assert_same_files(tmp_path / "whole", tmp_path / "spread")


def assert_same_files(one: Path, other: Path) -> None:
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other))
    assert first == second


@pytest.mark.parametrize(("family", "name"), [*((one, "hf") for one in SOME), ("llama", "hf_layouts")])
def test_export(family: str, name: str, tmp_path: Path) -> None:
    config = ExportConfig(formats=(name,), prompts=("w5 w6", "w7", "w8", "w9", "w10"), greedy_tokens=3)
    model = write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    given = {"model": model, "plan": write_plan(tmp_path / "plan"), "source": model, **scores_of(tmp_path)}
    files = both(export, Export(config, ()), given, tmp_path)
    assert json.loads(files["metrics.json"])[f"{name}_max_abs_logit_diff"] == 0.0


def test_draft(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["source"] = write_tiny_folder(tmp_path / "source", "llama", dtype="bfloat16")
    inputs["model"] = write_tiny_folder(tmp_path / "model", "llama", seed=1, dtype="bfloat16")
    found = []
    for name, room in (("whole", None), ("spread", {"cpu": 4096})):
        config = DraftConfig(prompts=("w5 w6", "w7"), new_tokens=8, repeats=3)
        files = written(draft, config, inputs, tmp_path / name, max_memory=room)
        numbers = json.loads(files["metrics.json"])
        found.append({key: one for key, one in numbers.items() if "per_s" not in key and "ratio" not in key})
    assert found[0] == found[1]
    assert "draft_acceptance_rate" in found[0]
