from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.tasks.data.response import Batch, collate, head, response_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_model
from resprout.tasks.recover import training as module
from resprout.tasks.recover.training import response_loss

ROWS = [Encoded([1, 2, 3], [4, 5]), Encoded([9], [8, 7, 6, 5]), Encoded([50, 60, 70, 80], [90])]


@pytest.fixture
def pair(models_folder: Path) -> tuple[Any, Any]:
    student, dense = (load_model(models_folder / name, "float32", "cpu") for name in ("pruned", "dense"))
    return student.requires_grad_(True), dense


def plain_logits(model: Any, row: Encoded) -> torch.Tensor:
    """Logits that predict the response, of a pass over this row alone, without padding: float64."""
    ids = torch.tensor([row.prompt_ids + row.response_ids])
    with torch.no_grad():
        return model(ids).logits[0, len(row.prompt_ids) - 1 : -1].double()


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


def test_response_states_give_the_model_s_logits(pair: tuple[Any, Any]) -> None:
    student, _ = pair
    with torch.no_grad():
        found = head(student, response_states(student, collate(ROWS)))
    expected = torch.cat([plain_logits(student, row) for row in ROWS])
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_cross_entropy_by_hand(pair: tuple[Any, Any]) -> None:
    """Mean over the seven response tokens of all rows, each from a pass of its own."""
    student, _ = pair
    found = response_loss(student, [collate(ROWS)])
    logs = [plain_logits(student, row).log_softmax(-1) for row in ROWS]
    each = [
        float(-log[i, token])
        for log, row in zip(logs, ROWS, strict=True)
        for i, token in enumerate(row.response_ids)
    ]
    assert len(each) == 7
    assert found.total.item() == pytest.approx(sum(each) / 7, abs=1e-5)
    assert found.cross_entropy.item() == found.total.item()
    assert found.distillation.item() == 0


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 1.0), (0.3, 2.0), (1.0, 4.0)])
def test_distillation_by_hand(pair: tuple[Any, Any], weight: float, temperature: float) -> None:
    student, dense = pair
    found = response_loss(student, [collate(ROWS)], dense, weight, temperature)
    kl = []
    for row in ROWS:
        q = (plain_logits(dense, row) / temperature).softmax(-1)
        p = (plain_logits(student, row) / temperature).softmax(-1)
        kl += (q * (q / p).log()).sum(-1).tolist()
    expected = temperature**2 * sum(kl) / 7
    assert expected > 0.01
    assert found.distillation.item() == pytest.approx(expected, rel=1e-4)
    mixed = (1 - weight) * found.cross_entropy.item() + weight * found.distillation.item()
    assert found.total.item() == pytest.approx(mixed, rel=1e-6)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(pair: tuple[Any, Any]) -> None:
    _, dense = pair
    assert response_loss(dense, [collate(ROWS)], dense, 1.0, 2.0).total.item() == pytest.approx(0, abs=1e-6)


def test_prompts_do_not_count(pair: tuple[Any, Any]) -> None:
    """One response token: all rows of the head's gradient lie along one state, and one of them is up."""
    student, _ = pair
    response_loss(student, [collate([Encoded([10, 20, 30, 40], [7])])]).total.backward()
    gradient = student.lm_head.weight.grad
    state = gradient[7] / gradient[7].norm()
    assert torch.allclose((gradient @ state).abs(), gradient.norm(dim=1), atol=1e-6)
    assert int((gradient @ state > 0).sum()) in (1, 257)


def test_pieces_of_the_head_change_nothing(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens at a time with recomputation: the same loss and the same gradients."""
    student, dense = pair
    results = []
    for elements in (module.HEAD_ELEMENTS, 258 * 2):
        monkeypatch.setattr(module, "HEAD_ELEMENTS", elements)
        student.zero_grad()
        loss = response_loss(student, [collate(ROWS)], dense, 0.5, 2.0).total
        loss.backward()
        results.append((loss.item(), [each.grad.clone() for each in student.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_parts_count_as_one_batch(pair: tuple[Any, Any]) -> None:
    """The mean is over all seven tokens, not over the means of the parts (2 + 4 tokens, and 1)."""
    student, dense = pair
    whole = response_loss(student, [collate(ROWS)], dense, 0.5)
    split = response_loss(student, [collate(ROWS[:2]), collate(ROWS[2:])], dense, 0.5)
    assert [each.item() for each in split] == pytest.approx([each.item() for each in whole], abs=1e-5)
    means = [response_loss(student, [collate(part)]).total.item() for part in (ROWS[:2], ROWS[2:])]
    assert abs(sum(means) / 2 - whole.cross_entropy.item()) > 0.01


def test_uniform_logits(pair: tuple[Any, Any]) -> None:
    """A head of zeros gives every token 1 / 258."""
    student, _ = pair
    student.lm_head.weight.data.zero_()
    assert response_loss(student, [collate(ROWS)]).total.item() == pytest.approx(math.log(258), abs=1e-5)


def test_batch_moves_as_one() -> None:
    moved = collate(ROWS).to("cpu")
    assert isinstance(moved, Batch)
    assert moved.targets.tolist() == collate(ROWS).targets.tolist()
