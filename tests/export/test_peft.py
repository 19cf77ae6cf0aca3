"""The adapter alone counts only where peft, on the pruned model, computes what recovery left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import ExportConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.export.format import format_of
from resprout.tasks.export.formats.peft import Peft
from resprout.tasks.export.probe import Probed, Question, probe
from resprout.tasks.export.stage import Export, export
from resprout.tasks.models.load import load_model, load_tokenizer, save_model
from tiny_export import scores_of, write_plan, write_recovery
from tiny_models import tiny_model, with_layers_that_differ, write_tiny_tokenizer

PROMPTS = ["w5 w6", "w7", "w8 w9 w10"]
Made = Callable[..., tuple[Peft, Path, Probed, Question]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A pruned model, a recovery with random adapters, its export, and the recovered model's answers."""

    def make(
        family: str, dtype: str = "float32", per_layer: bool = False
    ) -> tuple[Peft, Path, Probed, Question]:
        write_tiny_tokenizer(tmp_path / "tokenizer")
        model = tiny_model(family, dtype=dtype)
        pruned = with_layers_that_differ(model) if per_layer else model
        save_model(pruned, tmp_path / "pruned", tmp_path / "tokenizer")
        recovery = tmp_path / "recovery"
        write_recovery(tmp_path / "pruned", recovery, tmp_path / "tokenizer", dtype)
        question = Question(PROMPTS, 4, dtype, "cpu", 1)
        final = load_model(recovery / "model", dtype, "cpu")
        expected = probe(final, load_tokenizer(recovery / "model"), question)
        form = Peft()
        inputs = {"model": recovery / "model", "recovery": recovery, "pruned": tmp_path / "pruned"}
        (tmp_path / "out").mkdir()
        form.write(final, form.source("peft", inputs), tmp_path / "out")
        return form, tmp_path / "out", expected, question

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "qwen3"])
def test_peft_on_the_pruned_model_is_the_recovered_one(family: str, made: Made) -> None:
    form, folder, expected, question = made(family)
    found = form.compare(expected, form.probe(folder, question), 0.0)
    assert found["mean_kl_nats"] < 1e-8
    assert found["greedy_agreement"] == 1.0
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("per_layer", [False, True])
def test_its_card_says_what_it_goes_onto_whatever_the_widths(
    per_layer: bool, made: Made, tmp_path: Path
) -> None:
    made("llama", per_layer=per_layer)
    (tmp_path / "stage").mkdir()
    inputs = {
        "model": tmp_path / "recovery" / "model", "plan": write_plan(tmp_path / "plan"),
        "source": tmp_path / "pruned", "recovery": tmp_path / "recovery", "pruned": tmp_path / "pruned",
        **scores_of(tmp_path),
    }  # fmt: skip
    job = Job(Export(ExportConfig(formats=("peft",), greedy_tokens=2), ()), dtype="float32")
    export.body(job, inputs, tmp_path / "stage", silent)
    text = (tmp_path / "stage" / "peft" / "README.md").read_text()
    assert "This is an adapter alone. It goes onto the pruned model" in text
    assert "model = PeftModel.from_pretrained(pruned," in text


@pytest.mark.parametrize(("dtype", "per_layer"), [("bfloat16", False), ("bfloat16", True)])
def test_in_few_bits_merging_rounds_once(dtype: str, per_layer: bool, made: Made) -> None:
    form, folder, expected, question = made("llama", dtype, per_layer)
    assert 0 < form.compare(expected, form.probe(folder, question), 0.0)["mean_kl_nats"] < 1e-3


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_another_adapter_or_another_base_is_a_fault(part: str, made: Made, tmp_path: Path) -> None:
    form, folder, expected, question = made("llama")
    path = {
        "adapter": folder / "adapter_model.safetensors",
        "base": tmp_path / "pruned" / "model.safetensors",
    }[part]
    weights = load_file(path)
    name = next(name for name in sorted(weights) if "down_proj" in name)
    weights[name] = weights[name] * 1.5 + 0.1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(StageFailed, match=r"the peft export diverges by .* nats"):
        form.compare(expected, form.probe(folder, question), 0.0)


def test_an_adapter_that_does_not_fit_the_base_is_discarded(made: Made) -> None:
    form, folder, _, question = made("llama")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(StageFailed, match=r"cannot load and run the export .*; it is discarded"):
        form.probe(folder, question)


def test_a_recovery_of_an_earlier_version_kept_none(made: Made, tmp_path: Path) -> None:
    form, _, _, _ = made("llama")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=re.escape("which kept none: it was made by an earlier version")):
        form.write(tiny_model("llama"), tmp_path / "empty", tmp_path / "empty")


def test_it_has_no_types() -> None:
    with pytest.raises(BadInput, match="give peft, not peft:Q4"):
        format_of("peft:Q4")
