"""Files of few bits: bytes, importance, what a type cannot hold, and names that are unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.llama_cpp.model import FILE
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.load import save_model
from resprout.tasks.models.shape import shape_of
from resprout.tasks.quantize.format import format_of
from resprout.tasks.quantize.importance import mean_squares
from resprout.tasks.quantize.stage import Quantization, fits, quantize
from resprout.tasks.quantize.stage import importance as importance_stage
from tiny_models import tiny_model, write_byte_tokenizer

WIDE = {"hidden_size": 256, "intermediate_size": 512}


def inputs(root: Path, **widths: Any) -> dict[str, Path]:
    """A model with a tokenizer that llama.cpp knows, and calibration samples."""
    tokenizer, model, calibration = (root / name for name in ("tokenizer", "model", "calibration"))
    write_byte_tokenizer(tokenizer)
    save_model(tiny_model("llama", **{**WIDE, **widths}), model, tokenizer_from=tokenizer)
    calibration.mkdir()
    ids = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(3))
    save_file({"input_ids": ids}, calibration / "calibration.safetensors")
    return {"model": model, "calibration": calibration}


def made(given: dict[str, Path], out: Path, name: str, importance: bool = True) -> dict[str, Any]:
    out.mkdir()
    section = QuantizeConfig(formats=(name,), importance=importance)
    wanted = Quantization(section, name, "tiny-pruned", "Apache-2.0")
    if wanted.needs == "importance":
        measured = out.with_name(f"{out.name} importance")
        measured.mkdir()
        importance_stage.body(Job(section, dtype="float32"), given, measured, silent)
        given = {"model": given["model"], "importance": measured}
    else:
        given = {"model": given["model"]}
    digests = {role: role[0] * 64 for role in given}
    quantize.body(Job(wanted, dtype="float32", digests=digests), given, out, silent)
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_a_file_has_the_bytes_of_its_type_and_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    sizes = {
        name: made(given, tmp_path / name, f"gguf:{name}")["bytes"] for name in ("F16", "Q8_0", "Q4_K_M")
    }
    assert 1.6 < sizes["F16"] / sizes["Q8_0"] < 2.0
    assert 1.4 < sizes["Q8_0"] / sizes["Q4_K_M"] < 2.0
    made(given, tmp_path / "again", "gguf:Q4_K_M")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "Q4_K_M" / FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "config.json", "generation_config.json", "metrics.json", FILE, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_embedding_and_output_are_held_in_the_type_that_the_name_gives(tmp_path: Path) -> None:
    given = inputs(tmp_path, tie_word_embeddings=False)
    sizes = {}
    for name in ("Q4_0", "Q4_0:Q5_0"):
        sizes[name] = made(given, tmp_path / name, f"gguf:{name}")["bytes"]
    types = {one.name: one.tensor_type.name for one in GGUFReader(tmp_path / "Q4_0:Q5_0" / FILE).tensors}
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q5_0", "Q5_0")
    assert types["blk.0.ffn_down.weight"] == "Q4_0"
    # The output leaves Q6_K for Q5_0, the embedding Q4_0, each of 256 rows of 256: 8 blocks of 32 a row.
    output, embedding = 256 * (210 - 8 * 22), 256 * 8 * (22 - 18)
    assert sizes["Q4_0"] - sizes["Q4_0:Q5_0"] == output - embedding


def test_the_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    made(inputs(tmp_path), tmp_path / "file", "gguf:Q8_0")
    metadata, _ = read_header(tmp_path / "file" / FILE)
    own = {
        name: metadata.get(name)
        for name in ("resprout.model", "resprout.plan", "general.license", "general.name")
    }
    assert own == {
        "resprout.model": "m" * 64,
        "resprout.plan": None,
        "general.license": "Apache-2.0",
        "general.name": "tiny-pruned",
    }


def test_importance_changes_the_file(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    made(given, tmp_path / "with", "gguf:Q4_K_M")
    made(given, tmp_path / "without", "gguf:Q4_K_M", importance=False)
    assert (tmp_path / "with" / FILE).read_bytes() != (tmp_path / "without" / FILE).read_bytes()


def test_matrices_whose_rows_the_blocks_do_not_fill_are_counted(tmp_path: Path) -> None:
    # Rows of 192 are no multiple of 256, rows of 512 are: only the down projections hold the type.
    given = inputs(tmp_path, hidden_size=192, num_attention_heads=4, head_dim=48)
    found = made(given, tmp_path / "file", "gguf:Q4_K_M")
    per_layer = ["q", "k", "v", "o", "gate", "up"]
    assert found["fallback_tensors"] == 2 * len(per_layer) + len(["token_embd", "output"])


def test_mean_squares_are_those_of_a_loop() -> None:
    model = tiny_model("llama")
    ids = torch.arange(48).reshape(3, 16)
    found = mean_squares(model, ids)
    first = model.model.layers[0]
    read = first.input_layernorm(model.model.embed_tokens(ids)).flatten(0, 1)
    wanted = sum(row.double() ** 2 for row in read) / len(read)
    for name in ("q_proj", "k_proj", "v_proj"):
        got = found[f"model.layers.0.self_attn.{name}.weight"].double()
        assert torch.allclose(got, wanted, rtol=1e-5)
    assert len(found) == 2 * 7 + 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gguf:Q4_K_N", "'Q4_K_N' is not a type of a GGUF file; .*did you mean Q4_K_"),
        ("gguf:Q4_0:Q5_2", "'Q5_2' is not a type of an embedding; known are F16, .*did you mean Q5_"),
        ("gguf:F16:Q5_0", "F16 quantises nothing; give gguf:F16"),
        ("ggfu:Q4_0", "unknown quantised format 'ggfu'; did you mean 'gguf'"),
    ],
)
def test_unknown_names_are_one_sentence(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        format_of(name)


def test_models_that_a_format_cannot_hold_are_refused_before_a_run() -> None:
    asked = QuantizeConfig(formats=("gguf:Q4_0",))
    with pytest.raises(BadInput, match="no architecture for the family opt"):
        fits(asked, {"source": shape_of(tiny_model("opt").config.to_dict())})
    shape = shape_of(tiny_model("qwen3").config.to_dict())
    uneven = shape.with_counts("ffn", (128, 96))
    with pytest.raises(BadInput, match="layers of different widths for families that it computes as llama"):
        fits(asked, {"source": shape, "model": uneven})
    assert format_of("gguf:Q4_0").layouts(shape) == ("uniform",)
    of_llama = shape_of(tiny_model("llama").config.to_dict())
    assert format_of("gguf:Q4_0").layouts(of_llama) == ("uniform", "per_layer")
