"""Masked columns stay exactly zero while adapters train and after they are merged; others are not touched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.load import load_model, own_generator, save_model
from resprout.tasks.prune.masking import read_masked, write_masked
from resprout.tasks.recover.masked import leave_masked
from resprout.tasks.recover.methods.lora import merge, with_adapters
from resprout.tasks.recover.stage import recover
from resprout.tasks.recover.training import fit
from resprout.tasks.recover.training_data import prepare

Write = Callable[..., Path]
CONFIG = RecoverConfig(batch_tokens=600, learning_rate=5e-2, rank=4, epochs=3)
DOWN, OUT = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"


@pytest.fixture
def masked_folder(models_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with three zero columns in one reader, and a reader that is zero altogether."""
    model: Any = load_model(models_folder / "pruned", "float32", "cpu")
    columns = {DOWN: [0, 3, 7], OUT: list(range(model.get_submodule(OUT).in_features))}
    for name, inputs in columns.items():
        model.get_submodule(name).weight[:, inputs] = 0
    folder = tmp_path / "masked"
    folder.mkdir()
    save_model(model, folder, tokenizer_from=models_folder / "pruned")
    write_masked({f"{name}.weight": (1, inputs) for name, inputs in columns.items()}, folder)
    return folder


def trained(folder: Path, selection: Path, columns: Mapping[str, Any], job: Job[RecoverConfig]) -> Any:
    """The adapted model after training."""
    with own_generator(0, "cpu"):
        adapted = with_adapters(load_model(folder, job.dtype, "cpu"), job.config)
        leave_masked(adapted, columns)
        fit(adapted, None, job, prepare(job.config, {"pruned": folder, "selection": selection}, 17), silent)
    return adapted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked_columns_stay_zero(masked_folder: Path, write_selection: Write, dtype: str) -> None:
    columns = read_masked(masked_folder)
    assert columns[f"{DOWN}.weight"] == (1, [0, 3, 7])
    adapted = trained(masked_folder, write_selection(), columns, Job(CONFIG, dtype=dtype))
    adapter = adapted.get_submodule(f"base_model.model.{DOWN}")
    a, b = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    assert torch.equal(a[:, [0, 3, 7]], torch.zeros(4, 3))
    assert a[:, [1, 2, 4]].abs().min() > 0
    assert b.abs().max() > 0
    merged = merge(adapted)
    weight = merged.get_submodule(DOWN).weight
    assert (weight == 0).all(dim=0).nonzero().flatten().tolist() == [0, 3, 7]
    assert not merged.get_submodule(OUT).weight.any()


def test_without_masks_zero_columns_learn_like_others(masked_folder: Path, write_selection: Write) -> None:
    """A unit that was given back begins with zero columns too, which nothing says are masked."""
    merged = merge(trained(masked_folder, write_selection(), {}, Job(CONFIG, dtype="float32")))
    assert merged.get_submodule(DOWN).weight[:, [0, 3, 7]].abs().min() > 0


def test_nothing_is_touched_where_nothing_is_masked(models_folder: Path) -> None:
    """Not a hook, not a bit; elsewhere adapters start as they would."""
    model: Any = load_model(models_folder / "pruned", "float32", "cpu")
    with own_generator(0, "cpu"):
        adapted = with_adapters(model, CONFIG)
    before = {name: one.clone() for name, one in adapted.named_parameters()}
    leave_masked(adapted, {})
    assert all(torch.equal(one, before[name]) for name, one in adapted.named_parameters())
    assert not any(one._backward_hooks for one in adapted.parameters())
    leave_masked(adapted, {f"{DOWN}.weight": (1, [5])})
    changed = {name for name, one in adapted.named_parameters() if not torch.equal(one, before[name])}
    (name,) = {name for name, one in adapted.named_parameters() if one._backward_hooks}
    assert changed == {name} == {f"base_model.model.{DOWN}.lora_A.default.weight"}
    kept = [column for column in range(before[name].shape[1]) if column != 5]
    assert torch.equal(adapted.get_parameter(name)[:, kept], before[name][:, kept])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_stage_reads_what_the_model_has_masked(
    method: str, masked_folder: Path, write_selection: Write, tmp_path: Path
) -> None:
    inputs = {"pruned": masked_folder, "selection": write_selection()}
    (tmp_path / "out").mkdir()
    config = CONFIG.model_copy(update={"method": method, "learning_rate": 1e-3})
    recover.body(Job(config, dtype="float32"), inputs, tmp_path / "out", silent)
    after: Any = load_model(tmp_path / "out" / "model", "float32", "cpu")
    before: Any = load_model(masked_folder, "float32", "cpu")
    assert not torch.equal(after.get_submodule(DOWN).weight, before.get_submodule(DOWN).weight)
    assert not after.get_submodule(DOWN).weight[:, [0, 3, 7]].any()
    assert not after.get_submodule(OUT).weight.any()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["recovery_steps"] == 15
