from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from resprout.tasks.data.template import Encoded
from resprout.tasks.recover.batches import collate, dealt, keeps_apart, layouts, packed
from resprout.tasks.recover.examples import Examples
from tiny_models import tiny_model

ROWS = [Encoded([1, 2, 3], [4, 5]), Encoded([9], [8, 7, 6, 5]), Encoded([50, 60, 70], [90])]


def test_packed_by_hand() -> None:
    """10 in sequences of 8, 6, 4, 3, 2: 8 and 2; 6 and 4; 3 where room is left."""
    assert packed([4, 8, 3, 2, 6], [0, 1, 2, 3, 4], 10) == [[1, 3], [4, 0], [2]]


def test_packed_holds_all_and_wastes_little() -> None:
    lengths = np.random.default_rng(5).integers(20, 300, size=400).tolist()
    sequences = packed(lengths, range(400), 512)
    assert sorted(one for sequence in sequences for one in sequence) == list(range(400))
    assert max(sum(lengths[one] for one in sequence) for sequence in sequences) <= 512
    assert sum(lengths) / (512 * len(sequences)) > 0.97


def test_layouts_keep_to_the_bound_and_to_one_sequence_at_least() -> None:
    lengths = [100, 60, 60, 40, 30]
    assert layouts(lengths, range(5), 200, pack_to=None) == [[[0], [1]], [[2], [3], [4]]]
    # 100; 60 and 40; 60 and 30: sequences of 100, 100 and 90 places.
    assert layouts(lengths, range(5), 200, pack_to=64) == [[[0], [1, 3]], [[2, 4]]]


def test_dealt_by_hand() -> None:
    """Parts of 4, 12, 6, 9 and 10 places: by size to one and the other; who has none repeats the smallest."""
    lengths = [4, 6, 6, 6, 3, 3, 2, 10]
    parts = [[[0]], [[1], [2]], [[3]], [[4], [5], [6]], [[7]]]
    assert dealt(parts, lengths, 0, 1) == [(part, True) for part in parts]
    assert dealt(parts, lengths, 0, 2) == [([[0]], True), ([[1], [2]], True), ([[4], [5], [6]], True)]
    assert dealt(parts, lengths, 1, 2) == [([[3]], True), ([[7]], True), ([[0]], False)]
    assert dealt(parts[:1], lengths, 2, 3) == [([[0]], False)]


def test_collate_packed_by_hand() -> None:
    """Rows of 5, 5 and 4 tokens, two in one sequence: positions begin anew, padding too."""
    batch = collate(Examples.written([("rows", ROWS)]), [[0, 2], [1]], everything=False, pack=True)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 50, 60, 70, 90], [9, 8, 7, 6, 5, 0, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1, 2, 3]]
    assert batch.positions.tolist() == [2, 3, 7, 9, 10, 11, 12]
    assert batch.targets.tolist() == [4, 5, 90, 8, 7, 6, 5]
    assert batch.examples == [0, 2, 1]


def test_collate_padded_by_hand() -> None:
    """Of everything all tokens but the first are targets, also of prompts."""
    batch = collate(Examples.written([("rows", ROWS)]), [[0], [2]], everything=True, pack=False)
    assert batch.input_ids.ne(0).tolist() == [[True] * 5, [True] * 4 + [False]]
    assert batch.position_ids is None
    assert batch.positions.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert batch.targets.tolist() == [2, 3, 4, 5, 60, 70, 90]
    moved = batch.to("cpu")
    assert moved.examples == [0, 2]
    assert moved.targets.tolist() == batch.targets.tolist()


@pytest.mark.parametrize(("family", "apart"), [("llama", True), ("mixtral", True), ("opt", False)])
def test_what_does_not_keep_examples_apart_is_found(family: str, apart: bool) -> None:
    model: Any = tiny_model(family)
    cpu, dtype = torch.device("cpu"), torch.float32
    assert keeps_apart(model, Examples.written([("rows", ROWS)]), cpu, dtype) is apart
    assert not keeps_apart(model, Examples.written([("rows", ROWS[:1])]), cpu, dtype)
