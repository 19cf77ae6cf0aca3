"""What PERP trains moves, all else keeps its bits; merged it is a plain model of the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.schema import PerpConfig, RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.masking import write_masked
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.methods.perp import train
from resprout.tasks.recover.stage import fits
from resprout.tasks.recover.training_data import Recovered, TrainingData
from tiny_models import tiny_model, write_tiny_folder

ROWS = [
    Encoded([5, 6], torch.randint(4, 256, (20,), generator=torch.Generator().manual_seed(n)).tolist())
    for n in range(6)
]
DATA = TrainingData(Examples.written([("rows", ROWS)]), [[0, 1, 2], [3, 4, 5], [0, 3], [1, 2]], 0, 4, [])


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Any, Recovered]]:
    """The model before, and what recovery makes of it."""

    def call(
        family: str, dtype: str = "float32", masked: dict[str, Any] | None = None, **perp: Any
    ) -> tuple[Any, Recovered]:
        folder = write_tiny_folder(tmp_path / "pruned", family)
        write_masked(masked or {}, folder)
        config = RecoverConfig(
            method="perp", rank=2, learning_rate=1e-2, warmup_ratio=0.0, perp=PerpConfig(**perp)
        )
        found = train(Job(config, dtype=dtype), {"pruned": folder}, DATA, silent)
        return load_model(folder, dtype, "cpu"), found

    return call


def kinds(before: Any, after: Any) -> set[str]:
    """Of which kinds the parameters are that changed."""
    norms = {name.rpartition(".")[0] for name, one in before.named_parameters() if one.dim() == 1
             and name.endswith(".weight")}  # fmt: skip
    found = set()
    for name, one in after.named_parameters():
        other = before.get_parameter(name)
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        if not torch.equal(one, other):
            owner = name.rpartition(".")[0]
            kind = "norms" if owner in norms else "biases" if name.endswith(".bias") else "matrices"
            found.add("head" if owner in ("lm_head", "embed_out") else kind)
    return found


@pytest.mark.parametrize(
    ("family", "wanted", "moves"),
    [
        ("qwen2", ("biases",), {"biases"}),
        ("gpt2", ("norms",), {"norms"}),
        ("gpt2", ("biases", "norms"), {"biases", "norms"}),
        ("llama", ("head",), {"head"}),
        ("mixtral", ("norms", "adapters"), {"norms", "matrices"}),
        ("qwen2", ("biases", "norms", "head", "adapters"), {"biases", "norms", "head", "matrices"}),
        ("opt", ("biases", "norms", "head", "adapters"), {"biases", "norms", "matrices"}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_named_moves_and_nothing_else(
    family: str, wanted: tuple[str, ...], moves: set[str], dtype: str, run: Callable[..., Any]
) -> None:
    """OPT's head is tied to its embeddings, which stay."""
    before, found = run(family, dtype, train=wanted)
    assert kinds(before, found.model) == moves
    embeddings = (one.get_input_embeddings().weight for one in (before, found.model))
    assert torch.equal(*embeddings)
    assert len(found.history) == 4
    assert found.adapter is None
    assert 0 < found.metrics["trained_params"] < 0.2 * sum(one.numel() for one in before.parameters())


def test_masked_columns_stay_zero(run: Callable[..., Any], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    _, found = run("llama", masked={name: (1, [0, 5])}, train=("norms", "adapters"))
    assert not found.model.get_parameter(name)[:, [0, 5]].any()
    assert found.model.get_parameter(name)[:, 1].any()


def test_a_model_that_has_none_of_it() -> None:
    shape = shape_of(tiny_model("llama", tie_word_embeddings=True).config.to_dict())
    config = RecoverConfig(method="perp", perp=PerpConfig(train=("biases", "head")))
    with pytest.raises(BadInput, match=r"llama has no biases and its head is tied .*; add norms or adapters"):
        fits(config, {"source": shape})
    fits(RecoverConfig(method="perp"), {"source": shape})
