from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from resprout.tasks.data.top_tokens import events, rest_of
from resprout.tasks.recover import losses
from resprout.tasks.recover.losses import divergence, sums

P = torch.tensor([[0.5, 0.3, 0.2]]).log()
Q = torch.tensor([[0.25, 0.25, 0.5]]).log()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward", 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)),
        ("reverse", 0.25 * math.log(0.5) + 0.25 * math.log(0.25 / 0.3) + 0.5 * math.log(2.5)),
        # Against 0.2 p + 0.8 q = (0.3, 0.26, 0.44).
        ("skewed_forward", 0.5 * math.log(5 / 3) + 0.3 * math.log(30 / 26) + 0.2 * math.log(20 / 44)),
        # Against 0.8 p + 0.2 q = (0.45, 0.29, 0.26).
        ("skewed_reverse", 0.25 * math.log(25 / 45) + 0.25 * math.log(25 / 29) + 0.5 * math.log(50 / 26)),
    ],
)
def test_divergences_by_hand(kind: Any, expected: float) -> None:
    assert divergence(kind, P, Q, skew=0.2).item() == pytest.approx(expected, abs=1e-6)
    assert divergence(kind, P, P, skew=0.2).item() == pytest.approx(0, abs=1e-6)


def test_events_by_hand() -> None:
    """Of logits ln 5, ln 3, ln 2 the tokens 2 and 0 have 0.2 and 0.5, and the rest 0.3."""
    logits = torch.tensor([[5.0, 3.0, 2.0]]).log()
    assert events(logits, torch.tensor([[2, 0]])).exp().tolist() == [pytest.approx([0.2, 0.5, 0.3])]
    assert rest_of(torch.zeros(1, 1)).exp().item() == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("kind", ["forward", "reverse", "skewed_forward", "skewed_reverse"])
def test_fewer_events_are_never_farther_apart(kind: Any) -> None:
    """The divergence over k tokens and the rest grows with k, up to that over the vocabulary."""
    torch.manual_seed(3)
    teacher, student = torch.randn(50, 300) * 2, torch.randn(50, 300) * 2
    whole = divergence(kind, teacher.log_softmax(-1), student.log_softmax(-1)).item()
    found = []
    for k in (1, 4, 32, 128, 299):
        ids = teacher.topk(k).indices
        found.append(divergence(kind, events(teacher, ids), events(student, ids)).item())
    assert found == sorted(found)
    assert found[0] < whole / 2
    assert found[-1] == pytest.approx(whole, rel=1e-4)


def test_the_temperature_keeps_the_gradient_s_size() -> None:
    """T^2 KL of logits divided by T: for logits close to each other it is that at T = 1."""
    torch.manual_seed(3)
    teacher = torch.randn(20, 50).double() * 0.01
    student = teacher + torch.randn(20, 50).double() * 0.001
    found = [sums(student, torch.zeros(20).long(), (teacher, None), "forward", 0.1, t)[1] for t in (1.0, 4.0)]
    assert found[1].item() == pytest.approx(found[0].item(), rel=0.05)
    assert found[0] > 0


@pytest.mark.parametrize("k", [None, 8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_targets_that_are_not_learned_have_no_gradient(temperature: float, k: int | None) -> None:
    torch.manual_seed(3)
    teacher, logits, targets = torch.randn(20, 50), torch.randn(20, 50), torch.randint(50, (20,))
    ids = None if k is None else teacher.topk(k).indices
    words = teacher if ids is None else events(teacher / temperature, ids)
    found = []
    for learned in (True, False):
        own = logits.clone().requires_grad_(True)
        both = sums(own, targets, (words, ids), "forward", 0.1, temperature, learned)
        divergent = torch.autograd.grad(both[1], own, retain_graph=True)[0]
        whole = torch.autograd.grad(both.sum(), own)[0]
        found.append((both.detach(), divergent, whole))
    # Over the vocabulary the second has its gradient written down.
    close = {"rtol": 1e-6, "atol": 1e-6} if k is None else {"rtol": 0.0, "atol": 0.0}
    assert torch.allclose(found[0][0], found[1][0], **close)
    assert found[0][0][0].item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-6
    )
    assert torch.allclose(found[0][1], found[1][1], **close)
    assert torch.equal(found[1][2], found[1][1])
    assert not torch.allclose(found[0][2], found[0][1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_closed_form_by_hand(temperature: float) -> None:
    """Of (0.5, 0.3, 0.2) and (0.25, 0.25, 0.5), given as logits up to a constant: T^2 KL and T (q - p)."""
    student = (temperature * Q + 3).requires_grad_(True)
    both = sums(student, torch.tensor([2]), (temperature * P - 5, None), "forward", 0.1, temperature, False)
    by_hand = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
    assert both[1].item() == pytest.approx(temperature**2 * by_hand, abs=1e-5)
    # At T = 1 the student's logits are those of squares (1/16, 1/16, 1/4) where T is 2.
    assert both[0].item() == pytest.approx({1.0: math.log(2), 2.0: math.log(1.5)}[temperature], abs=1e-5)
    (3 * both[1] + both[0]).backward()
    expected = [3 * temperature * one for one in (-0.25, -0.05, 0.3)]
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_closed_form_is_what_autograd_finds(
    rows: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one token, of seven of twenty, and of all: value and gradient of the same in float64."""
    monkeypatch.setitem(losses.BLOCK, "cpu", rows * 50)
    torch.manual_seed(3)
    teacher, targets = (torch.randn(20, 50) * 3).double(), torch.randint(50, (20,))
    own, closed = (
        (torch.randn(20, 50, generator=torch.Generator().manual_seed(4)) * 3).double().requires_grad_(True)
        for _ in range(2)
    )
    logs = [(one / temperature).log_softmax(-1) for one in (teacher, own)]
    expected = temperature**2 * torch.nn.functional.kl_div(logs[1], logs[0], reduction="sum", log_target=True)
    expected.backward()
    found = sums(closed, targets, (teacher, None), "forward", 0.1, temperature, False)
    found[1].backward()
    assert found[1].item() == pytest.approx(expected.item(), rel=1e-12)
    assert found[0].item() == pytest.approx(
        torch.nn.functional.cross_entropy(own, targets, reduction="sum").item(), rel=1e-12
    )
    assert own.grad is not None
    assert closed.grad is not None
    assert torch.allclose(own.grad, closed.grad, atol=1e-12)
    narrow = own.detach().bfloat16().requires_grad_(True)
    sums(narrow, targets, (teacher, None), "forward", 0.1, temperature, False)[1].backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    assert torch.allclose(narrow.grad.double(), own.grad, atol=0.1)
    with torch.no_grad():
        assert torch.equal(sums(closed, targets, (teacher, None), "forward", 0.1, temperature, False), found)
