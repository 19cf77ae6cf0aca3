"""Distances of hidden states layer by layer: against a loop, and for which models there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import WHOLE
from resprout.tasks.evaluate import perplexity
from resprout.tasks.evaluate.held_out import held_out
from resprout.tasks.evaluate.layers import layer_pairs
from resprout.tasks.evaluate.perplexity import windows
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import write_tiny_folder


def test_distances_are_those_of_the_first_window_of_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 32)
    dense = load_model(write_tiny_folder(tmp_path / "a", dtype="float32"), "float32", "cpu")
    model = load_model(write_tiny_folder(tmp_path / "b", seed=1, dtype="float32"), "float32", "cpu")
    parts = windows([5 + i % 90 for i in range(96)], 16, 16, None)
    layers = layer_pairs(model, dense)
    # Of three batches of two windows two are compared: the third lies beyond 40 tokens.
    found = perplexity.scored(model, parts, dense, 40, WHOLE, layers=layers).layers
    assert len(found) == 2
    for batch, distances in enumerate(found):
        ids = torch.tensor([parts[2 * batch].ids])
        with torch.no_grad():
            ours, theirs = (one(ids, output_hidden_states=True).hidden_states for one in (model, dense))
        # The last of them is behind the final norm, so the last layer's own is not among them.
        for place in range(len(distances) - 1):
            apart = 1 - cosine_similarity(ours[place + 1], theirs[place + 1], dim=-1).mean()
            assert distances[place] == pytest.approx(apart.item(), rel=1e-4)
    twin = load_model(tmp_path / "a", "float32", "cpu")
    same = perplexity.scored(twin, parts, dense, 40, WHOLE, layers=layer_pairs(twin, dense)).layers
    assert same[0] == pytest.approx([0.0] * len(found[0]), abs=1e-6)


def test_models_without_the_same_layers_have_no_distances(tmp_path: Path) -> None:
    dense = load_model(write_tiny_folder(tmp_path / "a"), "float32", "cpu")
    shallow = load_model(write_tiny_folder(tmp_path / "b", num_hidden_layers=1), "float32", "cpu")
    narrow = load_model(write_tiny_folder(tmp_path / "c", intermediate_size=96), "float32", "cpu")
    assert layer_pairs(shallow, dense) is None
    assert layer_pairs(narrow, dense) is not None


def test_tokens_know_the_source_of_their_document(tmp_path: Path) -> None:
    texts = {"one": "w5 w6 w7", "two": "w8 w9", "three": "w10"}
    rows = [{"text": text, "source": source[:1]} for source, text in texts.items()]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = load_tokenizer(write_tiny_folder(tmp_path / "model"))
    base = {"name": "w", "text": [{"source": "x"}], "window_tokens": 8}
    given = {"perplexity": {**base, "window_tokens": 8, "join": " w4 w4 "}}
    found = held_out(tmp_path, tokenizer, EvaluateConfig.model_validate(given).perplexity)
    assert found.sources == ["o", "t"]
    assert list(zip(tokenizer.convert_ids_to_tokens(found.ids), found.owners, strict=True)) == [
        ("w5", 0), ("w6", 0), ("w7", 0), ("w4", 0), ("w4", 0), ("w8", 1), ("w9", 1), ("w4", 1), ("w4", 1),
        ("w10", 1),
    ]  # fmt: skip
    parts = windows(found.ids, 8, 8, 3, found.owners)
    assert [part.sources for part in parts] == [(0, 0, 0, 0, 0, 0, 1, 1, 1), (1, 1, 1)]
