from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from resprout.configs.errors import BadInput
from resprout.configs.schema import CalibrateConfig, TextSource
from resprout.tasks.calibrate.methods.cola import activation_features, representatives
from resprout.tasks.calibrate.methods.self_generated import first_tokens, generate
from resprout.tasks.calibrate.samples import cut
from resprout.tasks.calibrate.stage import METHODS, calibrate
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.load import load_model, load_tokenizer

TextFolder = Callable[[list[str]], Path]
TEXTS = ["".join(random.Random(n).choices("abcdef ghij", k=90 + 7 * n)) for n in range(40)]


def settings(method: str, **changes: Any) -> CalibrateConfig:
    given = {"samples": 6, "seq_len_tokens": 16, "projection_dim": 8, **changes}
    return CalibrateConfig(method=method, text=(TextSource(source="x"),), **given)


def run(method: str, inputs: dict[str, Path], workdir: Path, seed: int = 17, **changes: Any) -> torch.Tensor:
    workdir.mkdir()
    job = Job(settings(method, **changes), seed=seed, dtype="float32")
    calibrate.body(job, inputs, workdir, silent)
    return load_file(workdir / "calibration.safetensors")["input_ids"]


@pytest.fixture
def inputs(text_folder: TextFolder, model_folder: Path) -> dict[str, Path]:
    return {"text": text_folder(TEXTS), "model": model_folder}


@pytest.mark.parametrize("method", [entry.name for entry in METHODS])
def test_contract(method: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Every method: shape and type, tokens of the vocabulary, a note a sample; the seed decides all of it."""
    ids = run(method, inputs, tmp_path / "a")
    assert ids.shape == (6, 16)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 258
    assert len({tuple(row) for row in ids.tolist()}) == 6
    notes = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    assert [note["index"] for note in notes] == list(range(6))
    assert all(note["reason"] for note in notes)
    run(method, inputs, tmp_path / "b")
    for name in ("calibration.safetensors", "samples.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not torch.equal(run(method, inputs, tmp_path / "c", seed=18), ids)


@pytest.mark.parametrize("method", ["random", "cola"])
def test_samples_are_windows_of_the_text(method: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Each sample stands in the joined text at a multiple of 16, and its note names the document."""
    ids = run(method, inputs, tmp_path / "a")
    tokenizer: Any = load_tokenizer(inputs["model"])
    whole = "\n\n".join(TEXTS)
    notes = [json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()]
    for row, note in zip(ids.tolist(), notes, strict=True):
        start = note["window"] * 16
        assert tokenizer.decode(row) == whole[start : start + 16]
        before = whole[: start + 2].count("\n\n")
        assert note["row"] == before
        assert note["source"] == f"s{before}"


def test_random_needs_no_weights(inputs: dict[str, Path], tmp_path: Path) -> None:
    only = tmp_path / "tokenizer"
    only.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (only / name).write_bytes((inputs["model"] / name).read_bytes())
    assert run("random", {**inputs, "model": only}, tmp_path / "a").shape == (6, 16)


def test_windows_by_hand(text_folder: TextFolder, model_folder: Path) -> None:
    """'abcde' 2 line breaks 'fghi' is 11 tokens: 'abcd' (row 0), 'e..f' (row 0); 'ghi' is left over."""
    config = settings("random", seq_len_tokens=8).model_copy(update={"seq_len_tokens": 4})
    windows = cut(config, {"text": text_folder(["abcde", "fghi"]), "model": model_folder})
    tokenizer: Any = load_tokenizer(model_folder)
    assert [tokenizer.decode(row) for row in windows.input_ids] == ["abcd", "e\n\nf"]
    assert windows.documents.tolist() == [0, 0]


@pytest.mark.parametrize(("method", "needed"), [("random", 6), ("cola", 24)])
def test_too_few_windows(
    method: str, needed: int, text_folder: TextFolder, model_folder: Path, tmp_path: Path
) -> None:
    """80 characters hold 5 windows of 16 tokens."""
    short = {"text": text_folder(["a" * 80]), "model": model_folder}
    with pytest.raises(
        BadInput, match=rf"holds 5 windows of 16 tokens, but {method} needs {needed}; add text"
    ):
        run(method, short, tmp_path / "a")


def test_features_are_the_projected_mean_states(model_folder: Path) -> None:
    """Against hooks on the layers: same geometry up to the projection, one mean square for each layer."""
    model: Any = load_model(model_folder, "float32", "cpu")
    ids = torch.randint(0, 256, (40, 16), generator=torch.Generator().manual_seed(1))
    caught: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: caught.append(out.mean(1)))
        for layer in model.model.layers[:2]
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    features = activation_features(model, ids, 2000, 0, silent).reshape(40, 3, 2000)
    assert np.allclose((features**2).mean((0, 2)), 1.0, atol=1e-4)
    for layer, states in enumerate(caught):
        expected = torch.pdist(states).numpy()
        found = torch.pdist(torch.from_numpy(features[:, layer])).numpy()
        assert np.corrcoef(expected, found)[0, 1] > 0.99


def test_features_do_not_depend_on_the_batch(model_folder: Path) -> None:
    """257 sequences of 16 are three passes; a sequence's features are the same in any company."""
    model: Any = load_model(model_folder, "float32", "cpu")
    ids = torch.randint(0, 256, (257, 16), generator=torch.Generator().manual_seed(1))
    seen: list[tuple[int, int]] = []
    whole = activation_features(model, ids, 8, 0, lambda done, total, what: seen.append((done, total)))
    turned = activation_features(model, ids.flip(0), 8, 0, silent)
    assert np.allclose(whole, turned[::-1], atol=1e-4)
    assert seen == [(128, 257), (256, 257), (257, 257)]


def test_representatives_of_clear_groups() -> None:
    """Three groups around 0, 10 and 20 with their middle row at the centre: the middle rows are chosen."""
    offsets = np.array([-1.0, 0.0, 1.0])
    features = np.concatenate([offsets, 10 + offsets, 20 + offsets])[:, None].astype(np.float32)
    rows, distances, sizes = representatives(features, 3, seed=0)
    assert sorted(rows.tolist()) == [1, 4, 7]
    assert np.allclose(distances, 0, atol=1e-6)
    assert sizes.tolist() == [3, 3, 3]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_rows_still_give_different_samples() -> None:
    """Two distinct points, four centres: four different rows all the same."""
    rows, _, _ = representatives(np.array([[0.0]] * 4 + [[1.0]] * 4, dtype=np.float32), 4, seed=0)
    assert len(set(rows.tolist())) == 4


def test_generation_follows_the_model(model_folder: Path) -> None:
    """At a temperature near 0 each token is the argmax of a plain forward pass over all tokens before it."""
    model: Any = load_model(model_folder, "float32", "cpu")
    first = torch.tensor([256, 3])
    ids = generate(model, first, 12, 1e-4, torch.Generator().manual_seed(0), silent)
    assert torch.equal(ids[:, 0], first)
    with torch.no_grad():
        expected = model(ids).logits.argmax(-1)[:, :-1]
    assert torch.equal(ids[:, 1:], expected)


def test_sampling_has_the_model_s_distribution(model_folder: Path) -> None:
    """4,000 second tokens after BOS: the ten likeliest come as often as they should, to 4 standard errors."""
    model: Any = load_model(model_folder, "float32", "cpu")
    first = torch.full((4000,), 256)
    drawn = generate(model, first, 2, 0.05, torch.Generator().manual_seed(0), silent)[:, 1]
    with torch.no_grad():
        share = (model(first[:1, None]).logits[0, 0] / 0.05).softmax(-1)
    top = share.topk(10).indices
    expected, found = float(share[top].sum()), float(torch.isin(drawn, top).float().mean())
    assert 0.05 < expected < 0.95
    assert abs(found - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_first_tokens_without_bos(model_folder: Path) -> None:
    tokenizer: Any = load_tokenizer(model_folder)
    assert first_tokens(tokenizer, 3, torch.Generator()).tolist() == [256, 256, 256]
    tokenizer.bos_token = None
    drawn = first_tokens(tokenizer, 500, torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) > 100
    assert 257 not in drawn.tolist()


def test_progress_runs_to_the_end(inputs: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    job = Job(settings("self_generated", samples=40), dtype="float32")
    tmp_path.joinpath("a").mkdir()
    calibrate.body(job, inputs, tmp_path / "a", lambda done, total, what: seen.append((done, total)))
    assert seen[-1] == (640, 640)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
