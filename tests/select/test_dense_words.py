from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_checkpoints import Kept, Killed
from pydantic import ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.schema import PaserConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.data.top_tokens import Top, events
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.select import dense_words, kept_rows
from resprout.tasks.select.dense_words import KeptComparison, Words, joined_jsd, make
from resprout.tasks.select.divergence import Comparison, measure
from resprout.tasks.select.stage import METHODS, select, splits

Rows = list[dict[str, Any]]


def job(**paser: Any) -> Job[SelectConfig]:
    given = {"clusters": 4, "dense": "kept", **paser}
    config = SelectConfig(
        pool=(RowSource(source="x"),), budget_ratio=0.3, max_len_tokens=400, paser=PaserConfig(**given)
    )
    return Job(config, dtype="float32")


@pytest.fixture
def kept(
    models_folder: Path, pool_rows: Rows, write_rows: Callable[..., Path], tmp_path: Path
) -> Callable[..., Any]:
    inputs = {"rows": write_rows(pool_rows), "dense": models_folder / "dense"}
    numbers = iter(range(9))

    def call(**paser: Any) -> tuple[Path, dict[str, Path]]:
        folder = tmp_path / f"words{next(numbers)}"
        folder.mkdir()
        make(job(**paser), inputs, folder, silent)
        return folder, {**inputs, "pruned": models_folder / "pruned", "words": folder}

    return call


def tokens(models_folder: Path, rows: Rows) -> list[Encoded]:
    tokenizer: Any = load_tokenizer(models_folder / "dense")
    return encode_rows(tokenizer, sorted(rows, key=lambda row: row["id"]), "alpaca", 400)


def by_hand(models_folder: Path, row: Encoded, k: int) -> tuple[float, float]:
    """The divergence of a row's joined events and its bound, in float64 with full logits."""
    ids = torch.tensor([row.prompt_ids + row.response_ids])
    places = slice(len(row.prompt_ids) - 1, -1)
    with torch.no_grad():
        p, q = (
            load_model(models_folder / name, "float32", "cpu")(ids).logits[0, places].double().softmax(-1)
            for name in ("pruned", "dense")
        )
    top = q.topk(k).indices
    p, q = (torch.cat([one.gather(1, top), 1 - one.gather(1, top).sum(1, keepdim=True)], 1) for one in (p, q))
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    return float(jsd.mean()), float(((p[:, -1] + q[:, -1]) / 2).mean()) * math.log(2)


def test_the_divergence_of_joined_events(
    models_folder: Path, pool_rows: Rows, kept: Callable[..., Any]
) -> None:
    folder, _ = kept(top_k=8)
    encoded = tokens(models_folder, pool_rows)
    words = Words(folder, encoded)
    pruned: Any = load_model(models_folder / "pruned", "float32", "cpu")
    dense: Any = load_model(models_folder / "dense", "float32", "cpu")
    comparison = KeptComparison(pruned, words, 1.0)
    places, ids = [0, 7, 42], ["a", "h", "z"]
    found = comparison.of([encoded[place] for place in places], places, ids)
    expected = [by_hand(models_folder, encoded[place], 8) for place in places]
    # Log-probabilities are kept in 16 bits.
    assert found.jsd == pytest.approx([jsd for jsd, _ in expected], abs=2e-4)
    joined = np.array([one for _, one in expected])
    assert found.error is not None
    assert ((joined < found.error) & (found.error < joined + 3e-3)).all()
    whole = Comparison(pruned, dense).of([encoded[place] for place in places], places, ids)
    assert (abs(whole.jsd - found.jsd) <= found.error).all()
    assert found.dense_nll == pytest.approx(whole.dense_nll, abs=1e-5)


def exact(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The divergence over all tokens in float64: [tokens]."""
    p, q = first.double().softmax(-1), second.double().softmax(-1)
    m = (p + q) / 2
    return (torch.special.xlogy(p, p / m) + torch.special.xlogy(q, q / m)).sum(-1) / 2


@pytest.mark.parametrize("k", [1, 16, 299])
@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("apart", [0.01, 1.0])
def test_a_divergence_is_never_off_by_more_than_is_said(k: int, scale: float, apart: float) -> None:
    """Random logits of another spread, near each other and far apart, with all tokens kept but one too."""
    generator = torch.Generator().manual_seed(5)
    dense = torch.randn(400, 300, generator=generator) * scale
    own = dense + torch.randn(400, 300, generator=generator) * scale * apart
    top = Top.of(dense.log_softmax(-1), k)
    logs = torch.cat([top.logs, top.rest[:, None]], -1).half()
    found, error = joined_jsd(events(own, top.ids).exp(), logs)
    off = (exact(own, dense) - found).abs()
    assert (off <= error).all()
    assert (error <= math.log(2)).all()
    if k == 299:
        assert float(error.mean()) < 0.01


def test_sixteen_bits_put_a_divergence_off_by_more_than_joined_events_do() -> None:
    """With all tokens kept but the least likely, rest masses bound less than what rounding moves."""
    generator = torch.Generator().manual_seed(5)
    dense, own = (torch.randn(400, 300, generator=generator) * 4 for _ in range(2))
    top = Top.of(dense.log_softmax(-1), 299)
    logs = torch.cat([top.logs, top.rest[:, None]], -1).half()
    mine = events(own, top.ids).exp()
    found, _ = joined_jsd(mine, logs)
    rest = (mine[:, -1] + logs[:, -1].float().exp()) / 2 * math.log(2)
    assert ((exact(own, dense) - found).abs() > rest).any()


def test_the_error_of_one_token_by_hand() -> None:
    """Two events of 1/2 in both models, log 1/2 = -0.6931 in 16 bits: -0.693359375, which sums to 0.99957.

    An event moves by at most t = 0.693359 * 2^-11 / (1 - 2^-11) + 2^-25 + 0.000212 = 0.000551, so the term of
    each by 0.000551 / 2 * ln 2; the rest's mass of 1/2 may hide ln 2 / 2 = 0.34657 more.
    """
    half = torch.tensor([[math.log(0.5)] * 2])
    found, error = joined_jsd(half.exp(), half.half())
    assert float(found) == pytest.approx(0.0, abs=1e-7)
    t = 0.000551
    assert float(error) == pytest.approx(math.exp(t) * math.log(2) * (t + 0.5) + 1e-5, abs=2e-6)


def test_a_resumed_selection_states_the_error_of_all_rows(
    kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inputs = kept(top_k=8)
    monkeypatch.setattr(kept_rows, "CHECKPOINT_MINUTES", 1e-9)
    checkpoints = Kept(tmp_path / "checkpoints")

    def run(name: str, progress: Any = silent, **more: Any) -> dict[str, bytes]:
        (tmp_path / name).mkdir()
        select.body(replace(job(top_k=8), **more), inputs, tmp_path / name, progress)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    def progress(done: int, total: int, what: str) -> None:
        if what == "rows compared" and len(checkpoints.steps) == 3:
            raise Killed

    whole = run("whole")
    assert json.loads(whole["summary.json"])["jsd_error_at_most_nats"] > 0.01
    with pytest.raises(Killed):
        run("half", progress, checkpoints=checkpoints)
    assert run("again", checkpoints=checkpoints) == whole


def test_with_all_tokens_kept_a_selection_is_that_of_the_dense_model(
    models_folder: Path, kept: Callable[..., Any], tmp_path: Path
) -> None:
    _, inputs = kept(top_k=400)
    chosen = {}
    for name, paser in (("kept", {"top_k": 400}), ("online", {"dense": "online"})):
        (tmp_path / name).mkdir()
        select.body(job(**paser), inputs, tmp_path / name, silent)
        lines = (tmp_path / name / "selected.jsonl").read_text().splitlines()
        chosen[name] = {json.loads(line)["id"] for line in lines}
    common = len(chosen["kept"] & chosen["online"]) / len(chosen["online"])
    assert common > 0.9, "only ties and 16 bits part them"
    summary = json.loads((tmp_path / "kept" / "summary.json").read_text())
    assert 0 <= summary["jsd_error_at_most_nats"] < 0.01
    assert "jsd_error_at_most_nats" not in json.loads((tmp_path / "online" / "summary.json").read_text())


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_published_modes_may_read_them(
    mode: str, kept: Callable[..., Any], models_folder: Path, tmp_path: Path, pool_rows: Rows
) -> None:
    _, inputs = kept(mode=mode, top_k=16)
    (tmp_path / "out").mkdir()
    select.body(job(mode=mode, top_k=16), inputs, tmp_path / "out", silent)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["selected_rows"] > 5
    assert summary["path"]["mode"] == mode


def test_shards_and_passes_change_nothing(
    kept: Callable[..., Any], models_folder: Path, pool_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = tokens(models_folder, pool_rows)
    whole = Words(kept(top_k=8)[0], encoded)
    monkeypatch.setattr(dense_words, "SHARD_TARGETS", 150)
    monkeypatch.setattr(dense_words, "HEAD_ELEMENTS", 259 * 5)
    parted = Words(kept(top_k=8)[0], encoded)
    assert len(parted.firsts) > 5 > len(whole.firsts)
    for row in range(len(encoded)):
        for one, other in zip(whole.of(row), parted.of(row), strict=True):
            assert torch.allclose(one.float(), other.float(), atol=2e-3)
    assert parted.dense_nll == pytest.approx(whole.dense_nll, abs=1e-5)


def test_words_about_other_rows_are_refused(
    kept: Callable[..., Any], models_folder: Path, pool_rows: Rows
) -> None:
    folder, _ = kept(top_k=8)
    with pytest.raises(BadInput, match="kept words are about other rows"):
        Words(folder, tokens(models_folder, pool_rows[:50]))


def test_what_needs_the_dense_model_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="embedder hidden needs the dense model itself"):
        PaserConfig(dense="kept", embedder="hidden")
    with pytest.raises(ValidationError, match="max_ifd needs the dense model itself"):
        PaserConfig(dense="kept", max_ifd=1.0)
    assert not splits(job().config)
    assert "paser" in METHODS


def test_a_model_of_another_vocabulary(
    kept: Callable[..., Any], models_folder: Path, pool_rows: Rows
) -> None:
    folder, _ = kept(top_k=8)
    small: Any = load_model(models_folder / "pruned", "float32", "cpu")
    small.resize_token_embeddings(200)
    with pytest.raises(BadInput, match="has 200 tokens and the dense one 259"):
        KeptComparison(small, Words(folder, tokens(models_folder, pool_rows)), 1.0)


def test_the_pass_without_a_teacher_is_the_same_as_before(models_folder: Path, pool_rows: Rows) -> None:
    pruned, dense = (load_model(models_folder / name, "float32", "cpu") for name in ("pruned", "dense"))
    encoded = tokens(models_folder, pool_rows)
    found = measure(pruned, dense, encoded, list(map(str, range(len(encoded)))), 1.0, silent)
    again = Comparison(pruned, dense).of(encoded[:1], [0], ["a"])
    assert found.jsd[0] == pytest.approx(again.jsd[0], abs=1e-6)


def test_words_that_were_kept_are_not_asked_for_again(
    models_folder: Path,
    pool_rows: Rows,
    write_rows: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense_words, "SHARD_TARGETS", 400)
    monkeypatch.setattr(dense_words, "CHECKPOINT_MINUTES", 1e-9)
    inputs = {"rows": write_rows(pool_rows), "dense": models_folder / "dense"}
    kept = Kept(tmp_path / "kept")

    def run(name: str, checkpoints: Kept | None, progress: Any = silent) -> dict[str, bytes]:
        (tmp_path / name).mkdir()
        given = job(top_k=8)
        make(replace(given, checkpoints=checkpoints), inputs, tmp_path / name, progress)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    whole = run("whole", None)

    def progress(done: int, total: int, what: str) -> None:
        if len(kept.steps) == 4:
            raise Killed

    with pytest.raises(Killed):
        run("half", kept, progress)
    first = list[int]()
    assert run("again", kept, lambda done, total, what: first.append(done)) == whole
    assert min(first) > kept.steps[3] > 0
