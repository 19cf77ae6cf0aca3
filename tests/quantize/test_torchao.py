"""Checkpoints of torchao: codes by hand, what transformers computes of them, bytes, what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import QuantizeConfig
from resprout.flows.catalog import catalog
from resprout.tasks.core.job import Job, silent
from resprout.tasks.evaluate.layers import layer_pairs
from resprout.tasks.evaluate.pieces import _sizes
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model, save_model
from resprout.tasks.models.shape import read_config, shape_of
from resprout.tasks.packed.checkpoint import load_served, weight_bytes
from resprout.tasks.quantize.format import baselines, format_of
from resprout.tasks.quantize.stage import Quantization, fits, quantize
from resprout.tasks.torchao import library
from resprout.tasks.torchao.library import TYPES, require_torchao
from tiny_models import tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (6, 32), generator=torch.Generator().manual_seed(5))
PACKED = [name for name, one in sorted(FAMILIES.items()) if not one.transposed and not one.keys.experts]


def checkpoint(
    root: Path, family: str, kind: str = "INT8", dtype: str = "float32", **widths: Any
) -> tuple[Path, Path]:
    """The folder of a model, and of the checkpoint that the stage makes of it."""
    model, out = root / "model", root / kind
    if not model.exists():
        write_tiny_folder(model, family, dtype=dtype, **widths)
    out.mkdir()
    name = f"torchao:{kind}"
    wanted = Quantization(QuantizeConfig(formats=(name,)), name, licence="Apache-2.0")
    quantize.body(Job(wanted, dtype=dtype, digests={"model": "m" * 64}), {"model": model}, out, silent)
    return model, out


def codes_and_scales(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix out of the file alone: its codes, and the scale of each row."""
    tensors = load_file(folder / "model.safetensors")
    assert not tensors[f"{name}._weight_zero_point"].any()
    return tensors[f"{name}._weight_qdata"].numpy(), tensors[f"{name}._weight_scale"].double().numpy()


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_rounded_as_by_hand(kind: str, tmp_path: Path) -> None:
    """The largest weight of a row is at half of 255 steps; what lies above 127 of them is cut.

    2 / 127.5 is 0.0157470703125 in bfloat16: 2 is 127.01 steps, -1 is -63.50, 0.5 is 31.75, 0.25 is 15.88,
    -0.01 is -0.64.
    """
    model = tiny_model("llama", dtype="bfloat16")
    row = torch.zeros(128)
    row[:6] = torch.tensor([2.0, -1.0, 0.5, 0.25, -0.01, 0.0])
    model.model.layers[0].mlp.down_proj.weight.data[3] = row.bfloat16()
    write_tiny_folder(tmp_path / "tokenizer", "llama")
    save_model(model, tmp_path / "model", tokenizer_from=tmp_path / "tokenizer")
    _, out = checkpoint(tmp_path, "llama", kind, "bfloat16")
    codes, scales = codes_and_scales(out, "model.layers.0.mlp.down_proj")
    assert codes[3, :6].tolist() == [127, -64, 32, 16, -1, 0]
    assert not codes[3, 6:].any()
    assert scales[3, 0] == 0.0157470703125


@pytest.mark.parametrize("family", PACKED)
def test_transformers_computes_the_rounded_model(family: str, tmp_path: Path) -> None:
    """A dense model with the weights that the file spells gives the logits of the checkpoint."""
    model, out = checkpoint(tmp_path, family)
    # What stays whole is stored in bfloat16, and what is rounded was in bfloat16 before.
    dense, served = load_model(model, "bfloat16", "cpu").float(), load_served(out, "float32", "cpu")
    with torch.no_grad():
        before = dense(IDS).logits
    shape = shape_of(model)
    for layer in range(shape.layers):
        for name, _ in shape.matrices(layer):
            module = f"{shape.family.layer_prefix}{layer}.{name.removesuffix('.weight')}"
            codes, scales = codes_and_scales(out, module)
            weight = dense.get_submodule(module).weight
            steps = weight.double().numpy() / scales
            assert 126 < np.abs(steps).max() < 128
            # Quotients in float32 lie beside exact ones.
            assert np.abs(codes - np.clip(steps, -128, 127)).max() < 0.501
            weight.data = torch.tensor(codes * scales).float()
    with torch.no_grad():
        wanted, found = dense(IDS).logits, served(IDS).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert (found - before).abs().max() > 1e-4
        # Evaluation calls decoder and head each by itself.
        decoder = served.get_decoder()(IDS).last_hidden_state
        if family != "gemma2":
            torch.testing.assert_close(served.get_output_embeddings()(decoder), found, rtol=0, atol=0)
    assert shape_of(served.config.to_dict()).params == shape.params
    assert _sizes(served, out).bytes == weight_bytes(out)


def test_inputs_are_rounded_where_the_type_says_so(tmp_path: Path) -> None:
    _, out = checkpoint(tmp_path, "llama", "INT8-DYNAMIC")
    served = load_served(out, "float32", "cpu")
    codes, scales = codes_and_scales(out, "model.layers.0.mlp.down_proj")
    given = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(1))
    # A largest input below 0 would lie half between two codes.
    given[..., 0] = 5.0
    rows = given[0].double().numpy()
    step = 5.0 / 127.5
    wanted = np.clip(np.rint(rows / step), -128, 127) * step @ (codes * scales).T
    found = served.model.layers[0].mlp.down_proj(given)[0]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found.numpy() - rows @ (codes * scales).T).max() > 1e-4


def test_layers_are_compared_with_those_of_the_dense_model(tmp_path: Path) -> None:
    model, out = checkpoint(tmp_path, "llama")
    served, dense = load_served(out, "float32", "cpu"), load_model(model, "float32", "cpu")
    pairs = layer_pairs(served, dense)
    assert pairs is not None
    with torch.no_grad(), pairs.watched() as distances:
        dense(IDS)
        served(IDS)
    assert len(distances) == 2
    assert all(0 < one < 1e-3 for one in distances)


def test_it_is_what_transformers_makes_of_the_model(tmp_path: Path) -> None:
    """A TorchAoConfig given to from_pretrained packs the same matrices to the same codes."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    model, out = checkpoint(tmp_path, "llama", dtype="bfloat16")
    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16", quantization_config=config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, wanted = (load_file(one / "model.safetensors") for one in (out, tmp_path / "theirs"))
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    stated = [read_config(one) for one in (out, tmp_path / "theirs")]
    assert stated[0]["quantization_config"] == stated[1]["quantization_config"]


def test_bytes_share_and_what_it_was_made_of(tmp_path: Path) -> None:
    model, out = checkpoint(tmp_path, "llama")
    shape, metrics = shape_of(model), json.loads((out / "metrics.json").read_text())
    matrices = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    rows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    header = 8 + int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    # A byte for each weight, a float32 scale and a zero point of a byte for each row, the rest in bfloat16.
    assert (
        metrics["bytes"] == weight_bytes(out) == header + matrices + 5 * rows + 2 * (shape.params - matrices)
    )
    assert metrics["quantized_share"] == matrices / shape.params
    assert read_config(out)["resprout"] == {"license": "Apache-2.0", "model": "m" * 64}
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    out.rename(tmp_path / "first")
    _, again = checkpoint(tmp_path, "llama")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before


def test_neither_rounding_nor_calibration_is_a_matter_of_it() -> None:
    keys = [
        Quantization(QuantizeConfig(formats=("torchao:INT8",), **changed), "torchao:INT8").key_data()
        for changed in ({}, {"rounding": "nearest"}, {"importance": False})
    ]
    assert keys[0] == keys[1] == keys[2]
    assert keys[0]["needs"] == ""


def test_the_dense_model_is_compared_in_the_same_type_alone() -> None:
    assert baselines(["torchao:INT8"], ["quantized"]) == ["torchao:INT8"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("INT8-DYNAMICS", "known are INT8, INT8-DYNAMIC; did you mean INT8-DYNAMIC"),
        ("zz", "'zz' is no type of torchao checkpoint; known are INT8, INT8-DYNAMIC$"),
        ("int4", r"4 bits by another package \(mslk\), .* give compressed-tensors:W4A16"),
    ],
)
def test_unknown_types_are_one_sentence(kind: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        format_of(f"torchao:{kind}")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gpt2", "torchao:INT8 packs linear layers, and gpt2 keeps its matrices the other way round"),
        ("mixtral", "experts of a mixtral model in one tensor"),
        ("qwen2_moe", "experts of a qwen2_moe model in one tensor"),
    ],
)
def test_families_whose_matrices_are_no_linear_layers_are_refused(family: str, said: str) -> None:
    asked = QuantizeConfig(formats=("torchao:INT8",))
    with pytest.raises(BadInput, match=said):
        fits(asked, {"source": shape_of(tiny_model(family).config.to_dict())})


def test_torchao_would_leave_those_matrices_whole() -> None:
    """Why they are refused: nothing of a Conv1D or of fused experts would be packed."""
    from torchao.quantization import Int8Tensor, quantize_

    for family, part in (("gpt2", ".c_fc."), ("mixtral", ".experts.")):
        model = tiny_model(family)
        quantize_(model, library.config_of("INT8"))
        found = [one for name, one in model.named_parameters() if part in name]
        assert found
        assert not any(isinstance(one, Int8Tensor) for one in found)


def test_layers_of_different_widths_are_refused() -> None:
    shape = shape_of(tiny_model("llama").config.to_dict())
    uneven = shape.with_counts("ffn", (128, 96))
    with pytest.raises(BadInput, match="prune with layout: uniform"):
        fits(QuantizeConfig(formats=("torchao:INT8",)), {"source": shape, "model": uneven})


def test_a_checkpoint_is_no_model_to_prune(tmp_path: Path) -> None:
    _, out = checkpoint(tmp_path, "llama")
    with pytest.raises(BadInput, match=r"quant_method torchao.* quantised weights cannot be pruned"):
        shape_of(out)


def test_another_version_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str) -> None:
        require_torchao.cache_clear()
        with pytest.raises(BadInput, match=match):
            quantize.checks["quantize.formats"](QuantizeConfig(formats=("torchao:INT8",)), Path())

    with monkeypatch.context() as patched:
        patched.setattr(library, "VERSION", "0.0.1")
        refused(r"torchao 0\.18\.0 is installed, but .* by 0\.0\.1; pip install 'torchao==0\.0\.1'")
    with monkeypatch.context() as patched:
        patched.setattr(library, "PACKAGE", "no_such_package")
        refused(r"which is not installed; pip install torchao==0\.18\.0")
    require_torchao.cache_clear()
    require_torchao()


def test_nothing_is_logged_where_transformers_imports_it() -> None:
    code = (
        "import sys\n"
        "import resprout.tasks.measure.worker as worker\n"
        "worker._read_libraries()\n"
        "assert 'torchao' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_catalog_names_every_type() -> None:
    listed = {one["name"]: one["types"] for one in catalog()["quantize.formats"]}
    assert listed["torchao"] == list(TYPES)
