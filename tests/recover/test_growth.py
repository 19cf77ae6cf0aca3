"""Ranks grow where the update and its gradient are largest, to the budget, and what is ahead stays small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from resprout.configs.schema import LoraConfig, RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.recover.growth import Growth
from resprout.tasks.recover.masked import leave_masked
from resprout.tasks.recover.methods.lora import merge, with_adapters
from resprout.tasks.recover.stage import recover
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (2, 20), generator=torch.Generator().manual_seed(4))
RANK = 4


def adapted_llama() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = RecoverConfig(rank=RANK, dropout=0.0, lora=LoraConfig(ranks="increlora"))
        return with_adapters(tiny_model("llama"), config)


def loss_of(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits.log_softmax(-1)[..., 7].mean()
    return found


def alone(one: torch.Tensor) -> torch.Tensor:
    return one


def test_a_score_is_of_the_update_and_its_whole_gradient() -> None:
    """Beside autograd through the merged weights, of a model in which nothing is adapted."""
    adapted = adapted_llama()
    for name, one in adapted.named_parameters():
        if "lora_E" in name:
            one.data[0] = 0.7
    growth = Growth(adapted, RANK)
    growth.begin()
    loss_of(adapted).backward()
    growth.after_backward(1, 1000, alone)
    growth.finish()
    base: Any = tiny_model("llama")
    merged = merge(adapted).requires_grad_(True)
    loss_of(merged).backward()
    for name in growth.matrices:
        weight = merged.get_parameter(f"{name.removeprefix('base_model.model.')}.weight")
        before = base.get_parameter(f"{name.removeprefix('base_model.model.')}.weight")
        product = ((weight - before) * weight.grad).abs().sum() / weight.numel() ** 0.5
        assert growth.importance[name] == pytest.approx(0.15 * product.item(), rel=0.02)
        assert growth.uncertainty[name] == pytest.approx(0.15 * 0.85 * product.item(), rel=0.02)


def test_the_highest_scores_grow_first_up_to_the_budget() -> None:
    growth = Growth(adapted_llama(), RANK)
    names = list(growth.matrices)
    assert len(names) == growth.total == 14
    assert growth.target == 56
    for place, name in enumerate(names):
        growth.importance[name], growth.uncertainty[name] = float(place % 7), float(place)
    # Of 1,000 steps the first 25 warm up, and at 400 all 42 components are given out; each time 2 a matrix.
    assert [growth.planned(step, 1000) for step in (1, 25, 100, 400, 1000)] == [14, 14, 22, 56, 56]
    growth.after_backward(25, 1000, alone)
    assert growth.total == 14
    growth.after_backward(50, 1000, alone)
    assert [name for name in names if growth.ranks[name] == 3] == [names[13]]
    growth.after_backward(100, 1000, alone)
    # 8 components are due, of which one matrix has 2: three more rounds of one go to the three highest.
    highest = sorted(range(14), key=lambda place: -(place % 7) * place)[:3]
    assert {names[place] for place in highest} <= {name for name in names if growth.ranks[name] > 1}
    assert growth.total == 22
    for step in range(101, 1001):
        growth.after_backward(step, 1000, alone)
        assert growth.total <= growth.planned(step, 1000)
    assert growth.total == 56
    assert max(growth.ranks.values()) <= 4 * RANK


def test_what_is_ahead_is_trained_but_for_its_strength_and_what_waits_is_not() -> None:
    adapted = adapted_llama()
    growth = Growth(adapted, RANK)
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], weight_decay=0)
    module = next(iter(growth.matrices.values()))
    first = {letter: getattr(module, f"lora_{letter}")["default"].detach().clone() for letter in "ABE"}
    for _ in range(2):
        growth.begin()
        loss_of(adapted).backward()
        growth.after_backward(1, 1000, alone)
        optimizer.step()
        optimizer.zero_grad()
    now = {letter: getattr(module, f"lora_{letter}")["default"].detach() for letter in "ABE"}
    moved = (now["A"] != first["A"]).any(1).tolist()
    assert moved == [True] * 3 + [False] * 15
    assert (now["B"] != first["B"]).any(0).tolist() == moved
    strengths = now["E"].flatten()
    assert strengths[0] != 0
    torch.testing.assert_close(strengths[1:3], torch.full((2,), 1e-5), rtol=0, atol=0)
    assert not strengths[3:].any()
    growth.finish()
    assert not strengths[1:].any()


def test_components_are_drawn_towards_orthonormal_ones() -> None:
    adapted = adapted_llama()
    growth = Growth(adapted, RANK)
    module = next(iter(growth.matrices.values()))
    a = module.lora_A["default"]
    a.grad = torch.zeros_like(a)
    growth.after_backward(1, 1000, alone)
    # d|A A^T - 1| = 2 (A A^T - 1) A / |A A^T - 1|, of three components, times 0.1 over 28 factors.
    live = a.detach()[:3]
    apart = live @ live.T - torch.eye(3)
    torch.testing.assert_close(a.grad[:3], 0.1 / 28 * 2 * apart @ live / apart.norm())
    assert not a.grad[3:].any()


def test_masked_inputs_stay_unread_while_ranks_grow() -> None:
    adapted = adapted_llama()
    name = "model.layers.0.mlp.down_proj.weight"
    leave_masked(adapted, {name: (1, [0, 5])})
    growth = Growth(adapted, RANK)
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], weight_decay=0)
    for step in (100, 200, 300):
        growth.begin()
        loss_of(adapted).backward()
        growth.after_backward(step, 1000, alone)
        optimizer.step()
        optimizer.zero_grad()
    merged, before = merge(adapted).get_parameter(name), tiny_model("llama").get_parameter(name)
    same = (merged == before).all(0)
    assert same.nonzero().flatten().tolist() == [0, 5]


def test_a_recovery_grows_to_the_budget(
    models_folder: Path, write_selection: Callable[..., Path], tmp_path: Path
) -> None:
    inputs = {name: models_folder / name for name in ("pruned", "dense")}
    inputs["selection"] = write_selection()
    given = {
        "batch_tokens": 300, "learning_rate": 5e-3, "rank": RANK, "dropout": 0.0, "distill_weight": 1.0,
        "lora": {"ranks": "increlora"},
    }  # fmt: skip
    (tmp_path / "out").mkdir()
    job = Job(RecoverConfig.model_validate(given), dtype="float32")
    recover.body(job, inputs, tmp_path / "out", silent)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["loss_last_tenth"] < metrics["loss_first"]
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    ranks = list(config["rank_pattern"].values())
    assert sum(ranks) == RANK * len(ranks)
    assert min(ranks) < RANK < max(ranks)


def test_shares_of_matrices_cannot_be_scored() -> None:
    with pytest.raises(ValidationError, match=r"scores whole matrices, .* fsdp; give ranks: cfsp, or"):
        RecoverConfig.model_validate({"lora": {"ranks": "increlora"}, "devices": {"sharding": "fsdp"}})
