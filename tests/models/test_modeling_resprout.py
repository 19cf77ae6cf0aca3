"""The file that builds layers of different widths does so with torch and transformers alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.tasks.export.formats.hf_code import HuggingFaceCode
from resprout.tasks.models import modeling_resprout
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.layouts import cut_class, layout_of, write_shape
from resprout.tasks.models.load import load_model, save_model
from resprout.tasks.models.shape import Shape, caches_work, shape_of
from tiny_models import HIDDEN, tiny_model, write_tiny_folder

IDS = [5, 6, 7, 9, 250, 31]
TYPED = {
    name: {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4}
    for name in ("gemma2", "gemma3_text")
}
CHILD = """
import sys, json, torch
from pathlib import Path
sys.modules["resprout"] = None
from transformers import AutoModelForCausalLM
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        stopped = ""
    except Exception as error:
        stopped = type(error).__name__ + str(error)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([json.loads(sys.argv[2])])
    found[folder.name] = {
        "stopped": stopped,
        "logits": model(ids).logits.double().flatten().tolist(),
        "ids": model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist(),
    }
    copy = Path(sys.argv[3]) / folder.name
    model.save_pretrained(copy)
    again = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
    assert torch.equal(again(ids).logits, model(ids).logits)
assert not [name for name, module in sys.modules.items() if name.startswith("resprout") and module]
print(json.dumps(found))
"""


def shapes(family: str) -> Iterator[tuple[str, Shape]]:
    """Each way in which the layers of a family can differ, by name."""
    dense = shape_of(tiny_model(family, num_hidden_layers=4, **TYPED.get(family, {})).config.to_dict())
    yield "ffn", dense.with_counts("ffn", (128, 96, 32, 64) if not dense.experts else (32, 16, 8, 24))
    if "kv_groups" in dense.family.units:
        groups = dense.kv_heads[0]
        yield "groups", dense.with_counts("kv_groups", (groups, 1, groups, 1))
        yield "all_fewer", dense.with_counts("kv_groups", (1, 1, 1, 1)).with_counts("ffn", (16, 16, 16, 8))
    if "heads" in dense.family.units:
        yield "heads", dense.with_counts("heads", (2, 1, 1, 2))
    if dense.experts:
        yield "experts", dense.with_counts("experts", (4, 3, 2, 4))
    without = dense.with_counts("ffn", (dense.ffn[0], 0, dense.ffn[0], dense.ffn[0]))
    yield "missing", without.with_counts("kv_groups", (*dense.kv_heads[:2], 0, dense.kv_heads[3]))
    if family in HIDDEN and not dense.experts:
        yield "rotated", replace(dense, rotated=True)


def built(family: str, shape: Shape) -> Any:
    """A random model of this shape."""
    config = tiny_model(family, num_hidden_layers=4, **TYPED.get(family, {})).config
    write_shape(config, shape)
    assert layout_of(config) is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: Any = cut_class(type(tiny_model(family)))(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_loads_by_the_code_beside_the_weights_and_not_without(family: str, tmp_path: Path) -> None:
    """Every way in which layers can differ, in one process in which resprout cannot be imported."""
    expected: dict[str, Any] = {}
    tokenizer = write_tiny_folder(tmp_path / "tokenizer", "llama")
    ids = torch.tensor([IDS])
    for name, shape in shapes(family):
        model = built(family, shape)
        assert name != "missing" or caches_work(shape)
        HuggingFaceCode().write(model, tokenizer, tmp_path / "out" / name)
        again = load_model(tmp_path / "out" / name, "float32", "cpu")
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert not {"auto_map", modeling_resprout.LAYERS_KEY} & vars(again.config).keys()
        made = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()
        expected[name] = {"logits": model(ids).logits.double().flatten().tolist(), "ids": made}
    (tmp_path / "copies").mkdir()
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, tmp_path / "out", json.dumps(IDS), tmp_path / "copies"],
        capture_output=True, text=True, check=False,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for one in found.values():
        assert "mismatched" in one.pop("stopped")
    assert found == expected


def test_the_file_imports_nothing_but_torch_and_transformers() -> None:
    tree = ast.parse(Path(modeling_resprout.__file__).read_text(encoding="utf-8"))
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {
        "torch",
        "transformers",
    }
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "exec", "eval", "compile", "__import__"}


def test_a_model_that_stock_classes_load_gets_no_code(tmp_path: Path) -> None:
    source = write_tiny_folder(tmp_path / "source", "qwen3")
    HuggingFaceCode().write(load_model(source, "float32", "cpu"), source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


def test_a_folder_with_code_saved_again_names_none(tmp_path: Path) -> None:
    tokenizer = write_tiny_folder(tmp_path / "tokenizer", "llama")
    _, shape = next(shapes("llama"))
    HuggingFaceCode().write(built("llama", shape), tokenizer, tmp_path / "first")
    save_model(load_model(tmp_path / "first", "float32", "cpu"), tmp_path / "second", tmp_path / "first")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert "resprout_layout" in config
    assert not {"auto_map", modeling_resprout.LAYERS_KEY} & config.keys()


def test_weights_that_are_missing_are_no_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "out"
    _, shape = next(shapes("llama"))
    HuggingFaceCode().write(built("llama", shape), write_tiny_folder(tmp_path / "tokenizer", "llama"), folder)
    name = "model.layers.1.mlp.down_proj.weight"
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if key != name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    stock: Any = modeling_resprout.LlamaForCausalLM
    with pytest.raises(ValueError, match=f"the weights lack {name}; nothing is loaded"):
        stock.from_pretrained(folder)


def test_no_class_but_those_of_transformers_can_be_named() -> None:
    for name in ("__path__", "LlamaForCausalLMx", "torch_version"):
        with pytest.raises(AttributeError, match="has no class"):
            getattr(modeling_resprout, name)
