"""A model that gives no numbers on one row of five: each pass names model and row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprout.configs.errors import StageFailed
from resprout.configs.schema import PaserConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models import load
from resprout.tasks.select import compared, dense_words
from resprout.tasks.select.compared import Compared
from resprout.tasks.select.divergence import measure, prompt_states
from resprout.tasks.select.finite import require_finite
from resprout.tasks.select.kept_rows import KeptRows
from resprout.tasks.select.likelihood import following_difficulty, response_nll
from resprout.tasks.select.methods.rds_plus import representations

ROWS = [Encoded([5, 9, 77 + row], [3, 8, 6]) for row in range(5)]
IDS = [f"r{row}" for row in range(5)]
JOB = Job(
    SelectConfig(pool=(RowSource(source="x"),), budget_ratio=0.5, max_len_tokens=400, paser=PaserConfig()),
    dtype="float32",
)


@pytest.fixture
def sound(models_folder: Path) -> Any:
    return load.load_model(models_folder / "dense", "float32", "cpu")


@pytest.fixture
def ill(models_folder: Path) -> Any:
    return made_ill(load.load_model(models_folder / "dense", "float32", "cpu"), 80)


def made_ill(model: Any, token: int) -> Any:
    """Not a number wherever it reads that token."""
    model.get_input_embeddings().weight.data[token] = float("nan")
    assert torch.isfinite(model.get_output_embeddings().weight).all()
    return model


def refused(call: Callable[[], Any], model: str, row: str) -> None:
    said = f"the {model} model's logits or states are not finite on the {row}"
    with pytest.raises(StageFailed, match=said):
        call()


THIRD = r"row r3 \(number 4 by id\); try model\.dtype: float32"


@pytest.mark.parametrize("states", [False, True])
def test_the_model_of_a_pair_that_is_ill_is_named(states: bool, sound: Any, ill: Any) -> None:
    refused(lambda: measure(sound, ill, ROWS, IDS, 1.0, silent, states), "dense", f"{THIRD}$")
    refused(lambda: measure(ill, sound, ROWS, IDS, 1.0, silent, states), "pruned", f"{THIRD}, or a milder p")


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, kept: response_nll(model, ROWS, IDS, kept),
        lambda model, kept: following_difficulty(model, ROWS, IDS, kept),
        lambda model, kept: prompt_states(model, ROWS, IDS, kept, "pool"),
        lambda model, kept: representations(model, ROWS, IDS, kept, "pool"),
    ],
)
def test_passes_of_the_dense_model(ask: Callable[..., Any], ill: Any, sound: Any) -> None:
    refused(lambda: ask(ill, KeptRows(None, silent)), "dense", f"{THIRD}$")
    assert np.isfinite(ask(sound, KeptRows(None, silent))).all()


def test_words_of_a_dense_model_that_is_ill_are_not_kept(
    models_folder: Path,
    pool_rows: list[dict[str, Any]],
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One row of the pool holds the sign that the model cannot read."""
    tokenizer: Any = load.load_tokenizer(models_folder / "dense")
    (token,) = tokenizer("~")["input_ids"]
    rows = sorted(pool_rows, key=lambda row: row["id"])
    rows[41] = {**rows[41], "output": "so ~ so"}
    inputs = {name: models_folder / name for name in ("dense", "pruned")} | {"rows": write_rows(rows)}
    ids = [row["id"] for row in rows]
    where = rf"row {ids[41]} \(number 42 by id\)"
    monkeypatch.setattr(
        dense_words, "load_for", lambda job, folder: made_ill(load.load_for(job, folder), token)
    )
    refused(lambda: dense_words.make(JOB, inputs, tmp_path, silent), "dense", where)
    monkeypatch.undo()

    dense_words.make(JOB, inputs, tmp_path, silent)
    monkeypatch.setattr(compared, "load_for", lambda job, folder: made_ill(load.load_for(job, folder), token))
    job = replace(JOB, config=JOB.config.model_copy(update={"paser": PaserConfig(dense="kept")}))
    encoded = encode_rows(tokenizer, rows, "alpaca", 400)
    found = Compared(job, {**inputs, "words": tmp_path}, ids, encoded, silent)
    refused(lambda: found(range(90)), "pruned", where)
    refused(lambda: found.by(models_folder / "pruned")([3, 41]), "pilot's", where)


def test_the_first_of_several_rows_is_named_and_the_others_counted() -> None:
    values = np.array([[1.0, 2.0], [np.inf, 0.0], [0.0, np.nan]])
    require_finite(values[:1], "dense", [7], ["a"])
    refused(
        lambda: require_finite(values, "dense", [7, 2, 5], ["a", "b", "c"]),
        "dense",
        r"row b \(number 3 by id\) and 1 more of its batch; try model\.dtype: float32$",
    )
