from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.schema import RecoverConfig
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_model
from resprout.tasks.recover import learner as module
from resprout.tasks.recover.batches import collate
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.learner import Learner, Loss
from resprout.tasks.recover.matching import Pairs, outputs
from resprout.tasks.recover.teachers import Online
from tiny_models import tiny_model

ROWS = [Encoded([1, 2, 3], [4, 5]), Encoded([9], [8, 7, 6, 5]), Encoded([50, 60, 70, 80], [90])]


@pytest.fixture
def pair(models_folder: Path) -> tuple[Any, Any]:
    student, dense = (load_model(models_folder / name, "float32", "cpu") for name in ("pruned", "dense"))
    return student.requires_grad_(True), dense


def loss_of(
    student: Any,
    parts: list[list[Encoded]],
    dense: Any = None,
    weight: float = 0.0,
    temperature: float = 1.0,
    pack: bool = False,
    **changes: Any,
) -> Loss:
    """The loss of a step of these micro-batches: padded, or each packed into one sequence."""
    config = RecoverConfig(distill_weight=weight, distill_temperature=temperature, **changes)
    teacher = None if dense is None else Online(dense)
    learner = Learner(student, teacher, config, torch.float32)
    summed, targets = [], 0
    for rows in parts:
        examples = Examples.written([("rows", rows)])
        layout = [list(range(len(rows)))] if pack else [[index] for index in range(len(rows))]
        batch = collate(examples, layout, everything=False, pack=pack)
        targets += len(batch.targets)
        summed.append(learner(batch))
    return learner.loss(torch.stack(summed).sum(0), targets)


def plain_logits(model: Any, row: Encoded) -> torch.Tensor:
    """Logits that predict the response, of a pass over this row alone, without padding: float64."""
    ids = torch.tensor([row.prompt_ids + row.response_ids])
    with torch.no_grad():
        return model(ids).logits[0, len(row.prompt_ids) - 1 : -1].double()


def test_cross_entropy_by_hand(pair: tuple[Any, Any]) -> None:
    """Mean over the seven response tokens of all rows, each from a pass of its own."""
    student, _ = pair
    found = loss_of(student, [ROWS])
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
    found = loss_of(student, [ROWS], dense, weight, temperature)
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
    assert loss_of(dense, [ROWS], dense, 1.0, 2.0).total.item() == pytest.approx(0, abs=1e-6)


def test_prompts_do_not_count(pair: tuple[Any, Any]) -> None:
    """One response token: all rows of the head's gradient lie along one state, and one of them is up."""
    student, _ = pair
    loss_of(student, [[Encoded([10, 20, 30, 40], [7])]]).total.backward()
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
        loss = loss_of(student, [ROWS], dense, 0.5, 2.0).total
        loss.backward()
        results.append((loss.item(), [each.grad.clone() for each in student.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_gradients_alone_are_held_up_to_a_size(
    pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens at a time: the head runs once for each, or twice where the gradients take too much."""
    student, dense = pair
    monkeypatch.setattr(module, "HEAD_ELEMENTS", 258 * 2)
    results = []
    for held in (module.GRADIENT_BYTES, 4 * 258 * 7 - 1):
        monkeypatch.setattr(module, "GRADIENT_BYTES", held)
        student.zero_grad()
        passes = list[int]()
        watching = student.lm_head.register_forward_hook(lambda *_: passes.append(1))  # noqa: B023
        loss = loss_of(student, [ROWS], dense, 1.0, 2.0).total
        loss.backward()
        watching.remove()
        results.append((len(passes), loss.item(), student.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert [one[0] for one in results] == [4, 8]
    assert results[0][1] == results[1][1]
    assert torch.allclose(results[0][2], results[1][2], atol=1e-7)
    assert results[0][2].abs().max() > 1e-5


def test_parts_count_as_one_batch(pair: tuple[Any, Any]) -> None:
    """The mean is over all seven tokens, not over the means of the parts (2 + 4 tokens, and 1)."""
    student, dense = pair
    whole = loss_of(student, [ROWS], dense, 0.5)
    split = loss_of(student, [ROWS[:2], ROWS[2:]], dense, 0.5)
    assert [each.item() for each in split] == pytest.approx([each.item() for each in whole], abs=1e-5)
    means = [loss_of(student, [part]).total.item() for part in (ROWS[:2], ROWS[2:])]
    assert abs(sum(means) / 2 - whole.cross_entropy.item()) > 0.01


def test_uniform_logits(pair: tuple[Any, Any]) -> None:
    """A head of zeros gives every token 1 / 258."""
    student, _ = pair
    student.lm_head.weight.data.zero_()
    assert loss_of(student, [ROWS]).total.item() == pytest.approx(math.log(258), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2", "phi3", "qwen3"])
def test_packed_equals_unpacked(family: str) -> None:
    """Each example sees itself alone, from position 0 on: loss and gradients are those of separate passes."""
    model: Any = tiny_model(family).requires_grad_(True)
    found = []
    for pack in (True, False):
        model.zero_grad()
        loss = loss_of(model, [ROWS], pack=pack)
        loss.total.backward()
        found.append((loss.total.item(), [each.grad for each in model.parameters() if each.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for packed, apart in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "family"), [("hidden", "llama"), ("attention", "llama"), ("attention", "gpt2")]
)
def test_states_by_hand(kind: str, family: str) -> None:
    """|s - t|^2 / |t|^2 at each target, a mean over the two layers, by the layers' own outputs."""
    student: Any = tiny_model(family).requires_grad_(True)
    dense: Any = tiny_model(family)
    with torch.no_grad():
        for each in student.parameters():
            each.mul_(1.1)
    found = loss_of(student, [ROWS], dense, 1.0, distill={kind: 0.5})
    found.total.backward()
    errors = []
    for row in ROWS:
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        states = []
        for model in (student, dense):
            layers = model.get_submodule({"llama": "model.layers", "gpt2": "transformer.h"}[family])
            modules = [
                layer
                if kind == "hidden"
                else layer.get_submodule({"llama": "self_attn.o_proj", "gpt2": "attn.c_proj"}[family])
                for layer in layers
            ]
            with torch.no_grad(), outputs(modules) as seen:
                model(ids)
            states.append([one[0, len(row.prompt_ids) - 1 : -1].double() for one in seen])
        for mine, theirs in zip(*states, strict=True):
            errors += ((mine - theirs).square().sum(-1) / theirs.square().sum(-1)).tolist()
    assert len(errors) == 2 * 7
    assert found.states.item() == pytest.approx(0.5 * sum(errors) / 14, rel=1e-4)
    assert found.total.item() == pytest.approx(found.distillation.item() + found.states.item(), rel=1e-5)
    assert loss_of(dense, [ROWS], dense, 1.0, distill={kind: 0.5}).states.item() == pytest.approx(0, abs=1e-9)


def test_layers_of_a_shallower_student_are_matched_evenly() -> None:
    """Of four dense layers the two of the student answer to the second and the fourth."""
    student, dense = tiny_model("llama"), tiny_model("llama", num_hidden_layers=4)
    pairs = Pairs.of(student, dense, "hidden")
    assert list(pairs.student) == list(student.model.layers)
    assert list(pairs.dense) == [dense.model.layers[1], dense.model.layers[3]]
