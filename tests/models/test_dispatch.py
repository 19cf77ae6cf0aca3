"""A model whose layers lie on disk computes what the same model in memory does, to the last bit."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import Job
from resprout.tasks.models.anatomy import anatomy, is_offloaded
from resprout.tasks.models.load import load_for, load_model, load_pair, placement_for, save_model
from resprout.tasks.models.shape import count, shape_of
from tiny_models import with_layers_that_differ, write_tiny_folder

IDS = torch.arange(4, 36).reshape(2, 16)
ON_DISK = Job(None, max_memory={"cpu": 4096})
"""With room for nothing but what is always in memory."""


def test_logits_and_weights_are_those_of_the_model_in_memory(family, tmp_path):
    folder = tmp_path / "model"
    write_tiny_folder(folder, family, dtype="bfloat16")
    whole, spread = load_model(folder, "bfloat16", "cpu"), load_for(ON_DISK, folder)
    assert is_offloaded(spread)
    assert not is_offloaded(whole)
    assert spread.device.type == "cpu"
    assert count(spread) == count(whole)
    for _ in range(2):
        assert torch.equal(spread(IDS).logits, whole(IDS).logits)
        for one, other in zip(anatomy(spread).layers, anatomy(whole).layers, strict=True):
            with one.loaded(), one.loaded():
                pairs = {name: (tensor, other.tensors[name]) for name, tensor in one.tensors.items()}
                assert all(torch.equal(*pair) for pair in pairs.values())
            assert all(tensor.is_meta for tensor in one.tensors.values())
    assert not any(parameter.requires_grad for parameter in spread.parameters())


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_weights_are_written_again_only_where_files_have_another_form(family, tmp_path):
    write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    model = load_for(ON_DISK, tmp_path / "model")
    folder = Path(model.resprout_rewritten.name)
    fused = {name for name, _ in model.named_parameters() if ".experts." in name}
    assert {path.name.removesuffix(".safetensors") for path in folder.iterdir()} == fused
    assert bool(fused) == (family == "mixtral")
    del model
    gc.collect()
    assert not folder.exists()


def test_layers_with_widths_of_their_own_lie_on_disk(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    model = with_layers_that_differ(load_model(tmp_path / "model", "bfloat16", "cpu"))
    save_model(model, tmp_path / "cut", tokenizer_from=tmp_path / "model")
    spread = load_for(ON_DISK, tmp_path / "cut")
    assert is_offloaded(spread)
    assert torch.equal(spread(IDS).logits, model(IDS).logits)


def test_some_layers_stay_in_memory_where_they_fit(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16", num_hidden_layers=4)
    shape = shape_of(tmp_path / "model")
    layer = 2 * shape.layer_params(shape.widths(0))
    room = 2 * shape.params - layer
    model = load_for(Job(None, max_memory={"cpu": room}), tmp_path / "model")
    lie = [next(iter(one.tensors.values())).device.type for one in anatomy(model).layers]
    assert lie == ["cpu", "cpu", "meta", "meta"]
    whole = load_model(tmp_path / "model", "bfloat16", "cpu")
    assert torch.equal(model(IDS).logits, whole(IDS).logits)
    assert not is_offloaded(load_for(Job(None, max_memory={}), tmp_path / "model"))


def test_two_models_share_what_there_is(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16", num_hidden_layers=4)
    size = 2 * shape_of(tmp_path / "model").params
    for room, offloaded in ((2 * size, [False, False]), (2 * size - 2, [True, False]), (size, [True, True])):
        pair = load_pair(Job(None, max_memory={"cpu": room}), tmp_path / "model", tmp_path / "model")
        assert [is_offloaded(model) for model in pair] == offloaded


def test_who_needs_all_weights_says_so(tmp_path):
    write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    with pytest.raises(
        BadInput, match=r"criterion 'taylor' needs all weights .* in bfloat16, and there is room"
    ):
        load_for(ON_DISK, tmp_path / "model", resident="criterion 'taylor'")
    assert placement_for(Job(None), tmp_path / "model", resident="criterion 'taylor'") is None
