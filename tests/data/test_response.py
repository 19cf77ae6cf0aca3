from __future__ import annotations

from typing import Any

import torch

from resprout.tasks.data.response import Batch, collate, head, response_states
from resprout.tasks.data.template import Encoded
from tiny_models import tiny_model

ROWS = [Encoded([1, 2, 3], [4, 5]), Encoded([9], [8, 7, 6, 5]), Encoded([50, 60, 70, 80], [90])]


def test_collate_by_hand() -> None:
    """Longest row: 5. Row 0's response is predicted at 2, 3; row 1's at 5 + 0..3; row 2's at 10 + 3."""
    batch = collate(ROWS)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [9, 8, 7, 6, 5], [50, 60, 70, 80, 90]]
    assert batch.positions.tolist() == [2, 3, 5, 6, 7, 8, 13]
    assert batch.targets.tolist() == [4, 5, 8, 7, 6, 5, 90]
    assert batch.row.tolist() == [0, 0, 1, 1, 1, 1, 2]
    short = collate([Encoded([1], [2]), Encoded([], [3, 4, 5])])
    assert short.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert short.positions.tolist() == [0, 3, 4]
    assert short.targets.tolist() == [2, 4, 5]


def test_response_states_give_the_model_s_logits() -> None:
    """Also Gemma 2's, which end in a soft cap."""
    for family in ("llama", "gemma2"):
        model: Any = tiny_model(family)
        with torch.no_grad():
            found = head(model, response_states(model, collate(ROWS)))
            expected = []
            for row in ROWS:
                logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits
                expected.append(logits[0, len(row.prompt_ids) - 1 : -1])
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_batch_moves_as_one() -> None:
    moved = collate(ROWS).to("cpu")
    assert isinstance(moved, Batch)
    assert moved.targets.tolist() == collate(ROWS).targets.tolist()
