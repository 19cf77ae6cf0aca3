"""Every variant of adapters, merged, is the adapted model; kept alone, it goes onto the pruned one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.schema import LoraConfig, RecoverConfig
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.shape import shape_of
from resprout.tasks.recover.methods.lora import SPLITS, _factors, merge, share_out, unmerged, with_adapters
from resprout.tasks.recover.stage import fits, write_adapter
from resprout.tasks.recover.targets import check_fits
from tiny_models import tiny_model, with_layers_that_differ

IDS = torch.randint(4, 256, (2, 20), generator=torch.Generator().manual_seed(4))
ROWS = [
    Encoded([5, 6], torch.randint(4, 256, (30,), generator=torch.Generator().manual_seed(n)).tolist())
    for n in range(8)
]
EXPERTS = [name for name, family in sorted(FAMILIES.items()) if "experts" in family.units]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "pissa_dora": {"init": "pissa", "dora": True},
    "pissa_rslora": {"init": "pissa", "rslora": True, "rank_pattern": {"q_proj": 2}},
    "olora": {"init": "olora"},
    "corda": {"init": "corda"},
    "eva": {"init": "eva"},
    "cfsp": {"ranks": "cfsp"},
    "increlora": {"ranks": "increlora"},
}


def settings(rank: int = 4, dropout: float = 0.0, **lora: Any) -> RecoverConfig:
    return RecoverConfig(rank=rank, dropout=dropout, lora=LoraConfig(**lora))


def moved(adapted: Any) -> None:
    """Adapters as if they had been trained."""
    generator = torch.Generator().manual_seed(0)
    for name, one in adapted.named_parameters():
        if one.requires_grad:
            assert "lora_" in name
            one.data += torch.randn(one.shape, generator=generator) * 0.05


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def hold(family: str, lora: dict[str, Any], folder: Path, per_layer: bool = False) -> Any:
    """Adapted, trained and merged, the model computes one thing, and so does stock peft on the pruned one."""
    from peft import PeftModel

    given = lora

    def base() -> Any:
        model = tiny_model(family)
        return with_layers_that_differ(model) if per_layer else model

    pruned = base()
    before = logits(pruned)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = with_adapters(pruned, settings(**given), ROWS).eval()
    torch.testing.assert_close(logits(adapted), before, rtol=1e-3, atol=1e-3)
    first = _factors(adapted) if given.get("init") in SPLITS else {}
    moved(adapted)
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-2
    folder.mkdir(exist_ok=True)
    write_adapter(unmerged(adapted, first), folder / "adapter")
    merged = merge(adapted)
    torch.testing.assert_close(logits(merged), after, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())
    expected = {name: one.shape for name, one in base().named_parameters()}
    assert {name: one.shape for name, one in merged.named_parameters()} == expected
    again = PeftModel.from_pretrained(base(), folder / "adapter").eval()
    torch.testing.assert_close(logits(again), after, rtol=1e-4, atol=1e-4)
    return merged


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_unmerged_for_each_variant_and_layout(
    variant: str, per_layer: bool, tmp_path: Path
) -> None:
    hold("llama", VARIANTS[variant], tmp_path, per_layer)


@pytest.mark.parametrize("variant", ["dora", "pissa", "corda", "eva", "olora", "increlora"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama"}))
def test_merged_is_unmerged_for_each_family(family: str, variant: str, tmp_path: Path) -> None:
    if (family, variant) != ("gpt2", "olora"):
        hold(family, VARIANTS[variant], tmp_path)


@pytest.mark.parametrize("ranks", ["uniform", "cfsp"])
@pytest.mark.parametrize("family", EXPERTS)
def test_fused_experts_get_adapters_and_routers_none(family: str, ranks: str, tmp_path: Path) -> None:
    merged = hold(family, {"experts": True, "ranks": ranks}, tmp_path)
    before: Any = tiny_model(family)
    changed = {
        name for name, one in merged.named_parameters() if not torch.equal(one, before.get_parameter(name))
    }
    assert any(name.endswith("experts.gate_up_proj") for name in changed)
    assert any(name.endswith("experts.down_proj") for name in changed)
    assert not any(name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")) for name in changed)


def test_targets_are_ends_of_names() -> None:
    model: Any = tiny_model("llama")
    adapted = with_adapters(model, settings(targets=["q_proj", "mlp.down_proj"], rank_pattern={"q_proj": 2}))
    found = {name: one.shape[0] for name, one in adapted.named_parameters() if "lora_A" in name}
    assert len(found) == 4
    assert {rank for name, rank in found.items() if "q_proj" in name} == {2}
    assert {rank for name, rank in found.items() if "mlp.down_proj" in name} == {4}
    # The smaller rank scales its update as the others do theirs.
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.scaling["default"] == layer.mlp.down_proj.scaling["default"] == 4.0


def test_cfsp_keeps_the_budget() -> None:
    model: Any = tiny_model("llama", num_hidden_layers=4)
    torch.nn.init.zeros_(model.model.layers[2].mlp.down_proj.weight)
    torch.nn.init.zeros_(model.model.layers[2].self_attn.o_proj.weight)
    adapted = with_adapters(model, settings(ranks="cfsp"), ROWS)
    ranks = [
        layer.mlp.up_proj.lora_A["default"].weight.shape[0] for layer in adapted.base_model.model.model.layers
    ]
    assert sum(ranks) == 16
    assert ranks[2] == min(ranks) < max(ranks)
    assert share_out(10, [1.0, 1.0, 2.0]) == [3, 3, 4]
    assert share_out(3, [0.0, 0.0, 1.0]) == [1, 1, 1]


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("llama", settings(rank=40), r"rank is 40 for .*k_proj, whose smaller side is 32; give at most 32"),
        ("llama", settings(rank=40, ranks="increlora"), r"rank is 40 for .*k_proj, whose smaller side is 32"),
        ("llama", settings(targets=["c_attn"]), "c_attn, but llama has no such matrix; give .*q_proj"),
        ("gpt2", settings(targets=["q_proj"]), r"has no such matrix; give some of c_attn, c_fc, c_proj"),
        ("llama", settings(rank_pattern={"fc1": 2}), r"rank_pattern names fc1, but llama has no such matrix"),
        ("llama", settings(experts=True), "llama has no fused experts"),
        ("gpt2", settings(init="olora"), "but gpt2 has them the other way round"),
        ("mixtral", settings(experts=True, dropout=0.1), r"experts needs recover\.dropout: 0, .* it is 0\.1"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_the_model(family: str, config: RecoverConfig, says: str) -> None:
    shape = shape_of(tiny_model(family).config.to_dict())
    with pytest.raises(BadInput, match=says):
        check_fits(config, shape)
    with pytest.raises(BadInput, match=says):
        fits(config, {"source": shape})


def test_reconstruct_needs_the_dense_models_states() -> None:
    dense, cut = (shape_of(tiny_model("llama", hidden_size=size).config.to_dict()) for size in (64, 32))
    config = RecoverConfig(method="reconstruct")
    fits(config, {"source": dense, "model": dense})
    with pytest.raises(BadInput, match="but pruning cuts or turns them; give another method"):
        fits(config, {"source": dense, "model": cut})
    mixtral = shape_of(tiny_model("mixtral").config.to_dict())
    closed = RecoverConfig.model_validate({"method": "reconstruct", "reconstruct": {"solver": "closed_form"}})
    with pytest.raises(BadInput, match="which mixtral with its experts does not have; give solver: gradient"):
        fits(closed, {"source": mixtral})


@pytest.mark.parametrize(
    "lora",
    [
        {"experts": True, "dora": True},
        {"experts": True, "init": "pissa"},
        {"ranks": "cfsp", "rank_pattern": {"q_proj": 2}},
        {"init": "eva", "ranks": "cfsp"},
        {"init": "eva", "dora": True},
        {"ranks": "increlora", "rank_pattern": {"q_proj": 2}},
        {"ranks": "increlora", "init": "pissa"},
        {"ranks": "increlora", "dora": True},
        {"ranks": "increlora", "rslora": True},
        {"ranks": "increlora", "experts": True},
    ],
)
def test_settings_that_do_not_go_together(lora: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"do not go together, since .*; leave one of them out"):
        LoraConfig.model_validate(lora)


@pytest.mark.parametrize("init", ["pissa", "corda", "eva", "olora"])
def test_the_adapter_names_nothing_to_begin_from(init: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        adapted = with_adapters(tiny_model("llama"), settings(init=init), ROWS)
    write_adapter(unmerged(adapted, _factors(adapted) if init in SPLITS else {}), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["eva_config"] is config["corda_config"] is None
    assert config["r"] == (8 if init in SPLITS else 4)
