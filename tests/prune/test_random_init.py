"""Fresh weights in a pruned shape: as the stock class starts with, and by the seed alone."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model, own_generator
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (2, 8), generator=torch.Generator().manual_seed(6))


def config(**values):
    base = {"method": "random_init", "target": {"non_embedding_ratio": 0.84}, "round_to": 8, "units": ["ffn"]}
    return PruneConfig.model_validate(base | values)


def fresh(model, settings):
    plan, _ = make_plan(model, settings, IDS)
    pruned = copy.deepcopy(model)
    apply(pruned, plan)
    return pruned


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_weights_are_those_that_the_stock_class_starts_with(family, layout):
    """The same norms and biases; drawn tensors with the same mean and spread, and nothing of the old ones."""
    units = ["ffn" if "ffn" in FAMILIES[family].units else "experts"]
    dense = tiny_model(family)
    pruned = fresh(dense, config(units=units, layout=layout))
    with own_generator(0, "cpu"):
        stock = AutoModelForCausalLM.from_config(dense.config)
    old, start = dict(dense.named_parameters()), dict(stock.named_parameters())
    assert [name for name, _ in pruned.named_parameters()] == list(start)
    for name, found in pruned.named_parameters():
        if start[name].unique().numel() == 1:
            assert found.unique().tolist() == start[name].unique().tolist()
            continue
        count = found.numel()
        assert abs(found.std() / start[name].std() - 1) < 6 / count**0.5 + 0.05
        assert abs(found.mean()) < 6 * found.std() / count**0.5
        if found.shape == old[name].shape:
            alike = torch.stack([found.flatten(), old[name].flatten()])
            assert torch.corrcoef(alike)[0, 1].abs() < 6 / count**0.5
    assert bool(torch.isfinite(pruned(IDS).logits).all())


def test_weights_depend_on_the_seed_alone():
    dense = tiny_model("llama", tie_word_embeddings=True)
    torch.manual_seed(5)
    first = fresh(dense, config())
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    second = fresh(tiny_model("llama", seed=1, tie_word_embeddings=True), config())
    other = fresh(dense, config(repair_settings={"seed": 18}))
    for one, same, unlike in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert one.unique().numel() == 1 or not torch.equal(one, unlike)
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_through_the_doors_a_loaded_model_forgets_its_weights(tmp_path):
    """Loaded weights bear marks by which transformers would leave them as they are."""
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    calibration = write_calibration(tmp_path / "calibration", IDS)
    where = through_the_doors(config(), tmp_path / "model", calibration, tmp_path)
    before = dict(load_model(tmp_path / "model", "bfloat16", "cpu").named_parameters())
    for name, found in load_model(where["pruned"], "bfloat16", "cpu").named_parameters():
        assert found.shape != before[name].shape or not torch.equal(found, before[name])
        assert found.dtype == torch.bfloat16


def test_layer_by_layer_it_cannot_be_done():
    with pytest.raises(BadInput, match="stream, but repair 'random_init' runs the whole model at once"):
        resolve(config(memory="stream"))
