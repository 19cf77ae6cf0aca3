"""A GGUF file computes in llama.cpp what the model does in transformers, for every family that it names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.hyperparameters import _llama3
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.gguf.writer import plain_type, write_gguf
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.families.family import Unit
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.layouts import cut_class, write_shape
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.models.shape import shape_of
from tiny_models import FITTING, tiny_model, write_byte_tokenizer

NAMED = sorted(name for name, family in FAMILIES.items() if family.gguf)
IDS = [(place * 37 + 11) % 256 for place in range(40)]


def written(folder: Path, model: Any, kind: str = "F32") -> Path:
    """The model's file, beside its tokenizer."""
    write_byte_tokenizer(folder)
    write_gguf(model, load_tokenizer(folder), folder, folder / "model.gguf", GgufType[kind])
    return folder / "model.gguf"


def logits(file: Path) -> torch.Tensor:
    with LlamaCpp(file) as llama:
        llama.load(context_tokens=64, threads=1)
        return torch.from_numpy(np.array(llama.logits(IDS)))


def divergence(model: Any, file: Path) -> float:
    """Mean KL(model || file) over the positions of `IDS`, in nats."""
    ours = model(torch.tensor([IDS])).logits[0].log_softmax(-1)
    theirs = logits(file).log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.parametrize("family", NAMED)
def test_every_family_with_a_name_in_llama_cpp_computes_the_same(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, **FITTING.get(family, {}))
    # Weights are random and small, so that another order of anything moves logits by some tenths; the cache
    # of llama.cpp holds keys and values in half precision.
    found = logits(written(tmp_path, model))
    wanted = model(torch.tensor([IDS])).logits[0]
    assert (found - wanted).abs().max() < 2e-3
    assert wanted.abs().max() > 0.3


def test_a_family_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no architecture for the family opt"):
        written(tmp_path, tiny_model("opt"))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_is_near_and_equal_runs_give_equal_bytes(kind: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    first, second = (written(tmp_path / str(run), model, kind) for run in range(2))
    assert divergence(model, first) < 1e-4
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
    assert len(digests) == 1


def test_weights_are_kept_in_the_type_that_they_have() -> None:
    assert [plain_type(tiny_model("llama", dtype=dtype)) for dtype in ("float32", "bfloat16", "float16")] == [
        GgufType.F32, GgufType.BF16, GgufType.F16
    ]  # fmt: skip


def test_biases_of_llama_are_held(tmp_path: Path) -> None:
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    wanted = model(torch.tensor([IDS])).logits[0]
    assert (logits(written(tmp_path, model)) - wanted).abs().max() < 2e-3


def test_llama3_scaling_is_held(tmp_path: Path) -> None:
    rotary = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    }  # fmt: skip
    model = tiny_model("llama", rope_parameters=rotary)
    plain = tiny_model("llama")(torch.tensor([IDS])).logits[0]
    wanted = model(torch.tensor([IDS])).logits[0]
    assert (plain - wanted).abs().max() > 3e-3
    assert (logits(written(tmp_path, model)) - wanted).abs().max() < 1e-3


def test_llama3_frequencies_by_hand() -> None:
    # Of two frequencies, 1 and 1/100: wavelengths 6.28 and 628. With 32 positions, low 1 and high 4, the
    # first turns 5.1 times in them, more than high: kept. The second not once: divided by the factor.
    rotary = {
        "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    assert _llama3(rotary, 4).tolist() == pytest.approx([1.0, 8.0])


@pytest.mark.parametrize(
    ("family", "widths", "named"),
    [
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    family: str, widths: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=named):
        written(tmp_path, tiny_model(family, **widths))


def test_tensors_have_the_dimensions_that_the_shape_says(tmp_path: Path) -> None:
    from resprout.tasks.models.gguf_header import gguf_shape

    model = tiny_model("llama")
    read, own = gguf_shape(written(tmp_path, model)), shape_of(model.config.to_dict())
    assert (read.hidden, read.ffn, read.kv_heads, read.heads, read.head_dim, read.vocab) == (
        own.hidden, own.ffn, own.kv_heads, own.heads, own.head_dim, own.vocab
    )  # fmt: skip


UNEVEN: dict[str, tuple[Unit, tuple[int, int]]] = {
    "ffn": ("ffn", (96, 64)),
    "kv_groups": ("kv_groups", (2, 1)),
    "no attention": ("kv_groups", (0, 2)),
    "no ffn": ("ffn", (128, 0)),
}


def uneven(family: str, kind: str) -> Any:
    """A model with two layers of different widths, or one of them without a sublayer."""
    config = tiny_model(family).config
    unit, counts = UNEVEN[kind]
    write_shape(config, shape_of(config.to_dict()).with_counts(unit, counts))
    torch.manual_seed(5)
    return cut_class(type(tiny_model(family)))(config).eval()


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kind", UNEVEN)
def test_layers_of_different_widths_are_those_of_deci(family: str, kind: str, tmp_path: Path) -> None:
    model = uneven(family, kind)
    found = logits(written(tmp_path, model))
    assert (found - model(torch.tensor([IDS])).logits[0]).abs().max() < 2e-3
    metadata, _ = read_header(tmp_path / "model.gguf")
    assert metadata["general.architecture"] == "deci"


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_different_widths_of_other_families_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="for families that it computes as llama, not for"):
        written(tmp_path, uneven(family, "kv_groups"))
