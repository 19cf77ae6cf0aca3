"""A model read one layer at a time gives the same scores and the same pruned model, byte for byte."""

from __future__ import annotations

import pytest
import torch

from doors import through_the_doors, write_calibration
from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.offload import ActivationOffload, SafetensorsWriter
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.stage import plan, prune, score
from tiny_models import layout_for, write_tiny_folder

IDS = torch.randint(4, 256, (6, 24), generator=torch.Generator().manual_seed(2))


def made(folder, family, **changes):
    """What score, plan and prune leave in `folder`."""
    units = [unit for unit in ("ffn", "kv_groups") if unit in FAMILIES[family].units]
    target = {"params_ratio": 0.96}
    given = {"method": "flap", "units": units, "target": target, "round_to": 8, "repair": "least_squares"}
    given |= layout_for(family, units) | changes
    config = PruneConfig.model_validate(given)
    through_the_doors(config, folder.parent / "model", folder.parent / "calibration", folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    def write(family, **widths):
        write_tiny_folder(tmp_path / "model", family, dtype="bfloat16", **widths)
        write_calibration(tmp_path / "calibration", IDS)
        return tmp_path

    return write


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_streamed_bytes_are_those_of_the_whole_model(family, place, monkeypatch):
    folder = place(family, num_hidden_layers=3)
    # No one module reads the channels of experts, whose weights lie in files in another form than in memory.
    fused = {"method": "magnitude", "repair": "none"} if "experts" in FAMILIES[family].units else {}
    whole = made(folder / "whole", family, **fused)
    monkeypatch.setattr("resprout.tasks.models.forward.ACTIVATION_BYTES", 5000)
    assert made(folder / "stream", family, memory="stream", **fused) == whole


@pytest.mark.parametrize("method", ["magnitude", "wanda_sp"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_every_layerwise_method_streams(method, layout, place):
    folder = place("llama")
    changes = {"method": method, "layout": layout, "repair": "none"}
    assert made(folder / "stream", "llama", memory="stream", **changes) == made(
        folder / "whole", "llama", **changes
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"repair_settings": {"inputs": "pruned"}},
        {"method": "ziplm", "units": ["ffn", "kv_groups"]},
        {"criterion": "hidden_magnitude", "units": ["hidden"], "repair": "none"},
    ],
)
def test_repairs_in_order_and_hidden_channels_stream(changes, place, monkeypatch):
    folder = place("llama", num_hidden_layers=3)
    whole = made(folder / "whole", "llama", **changes)
    monkeypatch.setattr("resprout.tasks.models.forward.ACTIVATION_BYTES", 5000)
    assert made(folder / "stream", "llama", memory="stream", **changes) == whole


def test_memory_is_no_part_of_a_key():
    def keys(**changes):
        job = Job(PruneConfig.model_validate({"target": {"params_ratio": 0.9}, **changes}))
        return [stage.key(job, {}) for stage in (score, plan, prune)]

    assert keys(memory="stream") == keys()


def test_what_runs_the_whole_model_is_refused():
    config = {"method": "relevance", "units": ["ffn"], "target": {"params_ratio": 0.9}, "memory": "stream"}
    with pytest.raises(
        BadInput, match=r"criterion 'relevance' runs the whole model at once; give memory: whole"
    ):
        resolve(PruneConfig.model_validate(config))


def test_a_spool_gives_back_what_it_was_given():
    spool = ActivationOffload(limit_bytes=100)
    tensors = [torch.full((2, 10), float(n)) for n in range(3)]
    for tensor in tensors:
        spool.append(tensor)
    assert [torch.equal(one, two) for one, two in zip(spool, tensors, strict=True)] == [True] * 3
    spool[0], spool[2] = tensors[2], tensors[0]
    assert torch.equal(spool[0], tensors[2])
    assert torch.equal(spool[2], tensors[0])
    assert len(spool) == 3


def test_a_writer_minds_what_it_is_given(tmp_path):
    writer = SafetensorsWriter(tmp_path / "a.safetensors", {"a": (2,), "b": (1,)}, "float32")
    with pytest.raises(ValueError, match=r"a is \[3\] torch\.float32, expected \[2\]"):
        writer.put("a", torch.zeros(3))
    writer = SafetensorsWriter(tmp_path / "a.safetensors", {"a": (2,), "b": (1,)}, "float32")
    writer.put("a", torch.zeros(2))
    with pytest.raises(ValueError, match="1 tensors were not written, b for one"):
        writer.close()
