"""Checkpoints of compressed-tensors: what transformers computes of them, their bytes, what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import QuantizeConfig
from resprout.flows.catalog import catalog
from resprout.tasks.compressed_tensors import library
from resprout.tasks.compressed_tensors.library import require_compressed_tensors
from resprout.tasks.compressed_tensors.types import TYPES as TENSORS
from resprout.tasks.compressed_tensors.types import tensors_type
from resprout.tasks.core.job import Job, silent
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import read_config, shape_of
from resprout.tasks.packed.checkpoint import load_served, weight_bytes
from resprout.tasks.quantize.format import baselines, format_of
from resprout.tasks.quantize.stage import Quantization, fits, quantize
from tiny_models import tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (6, 32), generator=torch.Generator().manual_seed(5))
PACKED = [name for name, one in sorted(FAMILIES.items()) if not one.transposed and not one.keys.experts]
TYPES = ("W8A16", "W4A16-G32", "W4A16-G64", "W8A8", "FP8")
STOCK = """
import sys
sys.modules["resprout"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[4], local_files_only=True)
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["ids"]).logits.contiguous()}, sys.argv[3])
assert "resprout.tasks" not in sys.modules
"""


def checkpoint(
    root: Path, family: str, kind: str, rounding: str, dtype: str = "float32", **widths: Any
) -> tuple[Path, Path]:
    """The folder of a model, and of the checkpoint that the stage makes of it."""
    model, calibration, out = (root / name for name in ("model", "calibration", f"{kind}-{rounding}"))
    if not model.exists():
        write_tiny_folder(model, family, dtype=dtype, **widths)
        calibration.mkdir()
        save_file({"input_ids": IDS}, calibration / "calibration.safetensors")
    out.mkdir()
    given = {"model": model, "calibration": calibration}
    name = f"compressed-tensors:{kind}"
    wanted = Quantization(QuantizeConfig(formats=(name,), rounding=rounding), name, licence="Apache-2.0")
    job = Job(wanted, dtype=dtype, digests={role: role[0] * 64 for role in given})
    quantize.body(job, given, out, silent)
    return model, out


def stock_logits(folder: Path, dtype: str = "float32") -> torch.Tensor:
    """What transformers computes in a process without resprout."""
    ids, out = folder.parent / "ids.safetensors", folder.parent / "logits.safetensors"
    save_file({"ids": IDS}, ids)
    command = [sys.executable, "-I", "-c", STOCK, str(folder), str(ids), str(out), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return load_file(out)["logits"]


def unpacked(folder: Path, name: str, bits: int, group: int | None) -> np.ndarray:
    """A matrix out of the bytes alone: codes of `bits` bits, little end first, times scales."""
    tensors = load_file(next(folder.glob("*.safetensors")))
    scale = tensors[f"{name}.weight_scale"].double().numpy()
    if f"{name}.weight" in tensors:
        codes = tensors[f"{name}.weight"].double().numpy()
    else:
        words = tensors[f"{name}.weight_packed"].numpy().view(np.uint32)
        fields = [(words >> np.uint32(bits * place)) & np.uint32(2**bits - 1) for place in range(32 // bits)]
        codes = np.stack(fields, -1).reshape(len(words), -1).astype(np.float64) - 2 ** (bits - 1)
    return codes * np.repeat(scale, group or codes.shape[1], axis=1)


def in_bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.tensor(values).bfloat16().float().numpy()


def by_hand(weight: np.ndarray, kind: str, narrow: Any = in_bfloat16) -> np.ndarray:
    """Round to nearest by the definition: the largest weight of a group is at half the range of codes.

    In float32: a largest weight below 0 lies half between two codes. `narrow` is what scales are stored in.
    """
    one = tensors_type(kind)
    groups = weight.astype(np.float32).reshape(len(weight), -1, one.group or weight.shape[1])
    largest = np.abs(groups).max(-1, keepdims=True)
    if one.floating:
        scale = narrow(largest / np.float32(448))
        codes = torch.tensor(groups / scale).to(torch.float8_e4m3fn).double().numpy()
    else:
        scale = narrow(largest / np.float32((2**one.bits - 1) / 2))
        codes = np.clip(np.rint(groups / scale), -(2 ** (one.bits - 1)), 2 ** (one.bits - 1) - 1)
    return (codes * scale).reshape(weight.shape)


@pytest.mark.parametrize("kind", TYPES)
def test_nearest_is_the_definition_and_the_bytes_hold_it(kind: str, tmp_path: Path) -> None:
    model, out = checkpoint(tmp_path, "llama", kind, "nearest")
    dense, one = load_file(model / "model.safetensors"), tensors_type(kind)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        wanted = by_hand(dense[f"{name}.weight"].numpy(), kind)
        found = unpacked(out, name, one.bits, one.group)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    ends = load_file(out / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(ends[name], dense[name].bfloat16())


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", ["W8A16", "W4A16-G32"])
@pytest.mark.parametrize("family", PACKED)
def test_stock_transformers_computes_the_rounded_model(
    family: str, kind: str, rounding: str, tmp_path: Path
) -> None:
    """A dense model with the weights that the bytes spell gives the logits of the checkpoint."""
    model, out = checkpoint(tmp_path, family, kind, rounding)
    # What stays whole is stored in bfloat16.
    one, dense = tensors_type(kind), load_model(model, "bfloat16", "cpu").float()
    shape = shape_of(model)
    for layer in range(shape.layers):
        for name, _ in shape.matrices(layer):
            module = f"{shape.family.layer_prefix}{layer}.{name.removesuffix('.weight')}"
            weight = dense.get_submodule(module).weight
            before = weight.data.clone()
            weight.data = torch.tensor(unpacked(out, module, one.bits, one.group)).float()
            assert 0 < (weight.data - before).abs().max() < 0.35 * before.abs().max()
    with torch.no_grad():
        wanted = dense(IDS).logits
    if (family, rounding) == ("llama", "gptq"):
        torch.testing.assert_close(stock_logits(out), wanted, rtol=0, atol=0)
    with torch.no_grad():
        served = load_served(out, "float32", "cpu")
        torch.testing.assert_close(served(IDS).logits, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", TYPES)
def test_the_folder_keeps_what_rounding_chose_in_every_dtype(kind: str, dtype: str, tmp_path: Path) -> None:
    """The library takes codes from rounded weights: none may end beside the one that was chosen."""
    from resprout.tasks.quantize.grid import Grid
    from resprout.tasks.quantize.rounding import round_layers

    model, out = checkpoint(tmp_path, "qwen3", kind, "gptq", dtype)
    ours, served = load_model(model, dtype, "cpu"), load_served(out, dtype, "cpu")
    round_layers(ours, Grid(tensors_type(kind), ours.dtype), IDS)
    for name, weight in ours.state_dict().items():
        assert torch.equal(served.state_dict()[name], weight), name


@pytest.mark.parametrize("kind", ["W8A8", "FP8"])
def test_inputs_are_rounded_where_the_type_says_so(kind: str, tmp_path: Path) -> None:
    _, out = checkpoint(tmp_path, "llama", kind, "nearest")
    served = load_served(out, "float32", "cpu")
    linear = served.model.layers[0].mlp.down_proj
    given = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(1))
    rounded = torch.tensor(by_hand(given[0].numpy(), kind, lambda scale: scale)).float()
    wanted = rounded @ linear.weight.T
    torch.testing.assert_close(linear(given)[0], wanted, rtol=1e-4, atol=1e-5)
    assert (linear(given)[0] - given[0] @ linear.weight.T).abs().max() > 1e-4
    torch.testing.assert_close(stock_logits(out), served(IDS).logits, rtol=0, atol=0)


def test_bytes_share_and_what_it_was_made_of(tmp_path: Path) -> None:
    model, eight = checkpoint(tmp_path, "llama", "W8A16", "nearest", "bfloat16")
    _, four = checkpoint(tmp_path, "llama", "W4A16-G32", "gptq", "bfloat16")
    shape = shape_of(model)
    matrices = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    for out, bits, scales in (
        (eight, 8, 2 * 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)),
        (four, 4, matrices // 16),
    ):
        metrics = json.loads((out / "metrics.json").read_text())
        header = 8 + int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
        shapes = 2 * 7 * 16
        assert (
            metrics["bytes"]
            == weight_bytes(out)
            == (header + matrices * bits // 8 + scales + shapes + 2 * (shape.params - matrices))
        )
        assert metrics["quantized_share"] == matrices / shape.params
        assert read_config(out)["resprout"] == {
            "calibration": "c" * 64, "license": "Apache-2.0", "model": "m" * 64,
        }  # fmt: skip
    before = {path.name: path.read_bytes() for path in four.iterdir()}
    (tmp_path / "first").mkdir()
    four.rename(tmp_path / "first" / "four")
    _, again = checkpoint(tmp_path, "llama", "W4A16-G32", "gptq", "bfloat16")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == before


def test_gptq_is_another_checkpoint_and_loses_less(tmp_path: Path) -> None:
    model, nearest = checkpoint(tmp_path, "qwen2", "W4A16-G32", "nearest")
    _, gptq = checkpoint(tmp_path, "qwen2", "W4A16-G32", "gptq")
    with torch.no_grad():
        wanted, *found = (load_served(one, "float32", "cpu")(IDS).logits for one in (model, nearest, gptq))
    near, solved = ((one - wanted).square().mean().item() for one in found)
    assert 0 < solved < near / 2


def test_rounding_is_a_matter_of_this_format_alone() -> None:
    def key(name: str, **changed: Any) -> dict[str, Any]:
        return Quantization(QuantizeConfig(formats=(name,), **changed), name).key_data()

    assert key("gguf:Q4_0") == key("gguf:Q4_0", rounding="nearest")
    assert key("gguf:Q4_0") != key("gguf:Q4_0", importance=False)
    assert key("compressed-tensors:W8A16") == key("compressed-tensors:W8A16", importance=False)
    assert key("compressed-tensors:W8A16") != key("compressed-tensors:W8A16", rounding="nearest")


def test_the_dense_model_is_compared_in_the_same_type_and_fewer_bits() -> None:
    names = ("compressed-tensors:W8A16", "compressed-tensors:W4A16-G64", "gguf:Q8_0")
    assert baselines(names, ["quantized"]) == [
        "compressed-tensors:W8A16", "compressed-tensors:W4A16-G32", "compressed-tensors:W4A16-G64",
        "gguf:Q8_0", "gguf:Q6_K", "gguf:Q5_K_M", "gguf:Q5_K_M:Q5_0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "W4A17",
            "'W4A17' is no type of compressed-tensors checkpoint; known are W8A16, .*did you mean W4A16",
        ),
        ("zz", "known are W8A16, W8A8, FP8, W4A16-G32, W4A16-G64, W4A16-G128, W4A16$"),
    ],
)
def test_unknown_types_are_one_sentence(kind: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        format_of(f"compressed-tensors:{kind}")


@pytest.mark.parametrize(
    ("kind", "widths", "said"),
    [
        (
            "W4A16",
            {"intermediate_size": 192},
            r"every 128 weights .* rows of 64 .* give W4A16-G64 or W4A16-G32 or",
        ),
        (
            "W4A16-G64",
            {"intermediate_size": 160},
            r"rows of 160 \(mlp.down_proj.weight\) .* give W4A16-G32 or W8A16",
        ),
        ("W4A16-G32", {"intermediate_size": 150}, "rows of 150 .* do not fill; give W8A16$"),
    ],
)
def test_groups_that_do_not_fill_a_row_are_refused_with_those_that_do(
    kind: str, widths: dict[str, int], said: str
) -> None:
    asked = QuantizeConfig(formats=(f"compressed-tensors:{kind}",))
    shape = shape_of(tiny_model("llama", **widths).config.to_dict())
    with pytest.raises(BadInput, match=said):
        fits(asked, {"source": shape})
    fits(QuantizeConfig(formats=("compressed-tensors:W8A16",)), {"source": shape})


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("gpt2", "the other way round"),
        ("mixtral", "experts of a mixtral model in one tensor"),
        ("qwen3_moe", "one"),
    ],
)
def test_families_that_stock_transformers_cannot_read_packed_are_refused(family: str, said: str) -> None:
    asked = QuantizeConfig(formats=("compressed-tensors:W8A16",))
    with pytest.raises(BadInput, match=said):
        fits(asked, {"source": shape_of(tiny_model(family).config.to_dict())})


def test_layers_of_different_widths_are_refused() -> None:
    shape = shape_of(tiny_model("llama").config.to_dict())
    uneven = shape.with_counts("ffn", (128, 96))
    with pytest.raises(BadInput, match="prune with layout: uniform"):
        fits(QuantizeConfig(formats=("compressed-tensors:W8A16",)), {"source": shape, "model": uneven})


def test_a_checkpoint_is_no_model_to_prune(tmp_path: Path) -> None:
    _, out = checkpoint(tmp_path, "llama", "W8A16", "nearest")
    with pytest.raises(BadInput, match="quantised weights cannot be pruned"):
        shape_of(out)


def test_another_version_and_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str) -> None:
        require_compressed_tensors.cache_clear()
        with pytest.raises(BadInput, match=match):
            quantize.checks["quantize.formats"](QuantizeConfig(formats=("compressed-tensors:W8A16",)), Path())

    with monkeypatch.context() as patched:
        patched.setattr(library, "VERSION", "0.0.1")
        refused(r"compressed-tensors 0\.20\.1 is installed, but .* by 0\.0\.1")
    with monkeypatch.context() as patched:
        patched.setattr(library, "PACKAGE", "no_such_package")
        refused(r"which is not installed; pip install compressed-tensors==0\.20\.1")
    require_compressed_tensors.cache_clear()
    require_compressed_tensors()


def test_nothing_is_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out = checkpoint(tmp_path, "llama", "W8A16", "nearest")
    with torch.no_grad():
        load_served(out, "float32", "cpu")(IDS)
    drawn = capfd.readouterr()
    assert drawn.out + drawn.err == ""


def test_the_catalog_names_every_type() -> None:
    listed = {one["name"]: one["types"] for one in catalog()["quantize.formats"]}
    assert listed["compressed-tensors"] == list(TENSORS)
    assert sorted(listed["gguf"]) == sorted(GgufType.__members__)
