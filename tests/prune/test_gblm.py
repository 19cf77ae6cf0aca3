"""GBLM: by hand, and against numpy on the gradients of torch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resprout.tasks.models.anatomy import Part, Units, anatomy
from resprout.tasks.models.forward import watch
from resprout.tasks.prune import scoring as engine
from resprout.tasks.prune.criteria.gblm import Gblm
from resprout.tasks.prune.scoring import score_units
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (4, 12), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # Gradients of two batches [[3, 0], [0, 1]] and [[4, 0], [0, -1]]: norms [[5, 0], [0, sqrt(2)]].
        # Inputs' norms 5 and 2: 1 * (10 * 5 + 5) + 2 * 5, and 2 * 2 + 1 * (10 * sqrt(2) + 2).
        ("l2", [65.0, 6 + 10 * 2**0.5]),
        # Norms [[7, 0], [0, 2]]: 1 * (70 + 5) + 2 * 5; 2 * 2 + 1 * (20 + 2).
        ("l1", [85.0, 26.0]),
    ],
)
def test_gblm_by_hand(norm, expected):
    criterion = Gblm(alpha=10.0, norm=norm)
    units = Units(Part("ffn", 2, (), "reader"), {"reader.weight": torch.tensor([[1.0, -2.0], [2.0, 1.0]])})
    sums, inputs = criterion.gradients(units), criterion.statistic(2)
    for corner, sign in ((3.0, 1.0), (4.0, -1.0)):
        sums.update("reader.weight", torch.tensor([[corner, 0.0], [0.0, sign]]), 0.5)
    inputs.update(torch.tensor([[[3.0, 2.0], [4.0, 0.0]]]))
    torch.testing.assert_close(criterion.score(units, sums, inputs), torch.tensor(expected).view(2, 1))
    assert (sums.names, sums.elements) == (("reader.weight",), 4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_scores_of_a_model_equal_the_numpy_reference(family, monkeypatch):
    """Two batches of two samples; GPT-2 stores its weights the other way round."""
    monkeypatch.setattr(engine, "BATCH_TOKENS", 24)
    model = tiny_model(family)
    readers = [layer.reader("ffn").weight for layer in anatomy(model).layers]
    squares = [0.0, 0.0]
    for ids in IDS.split(2):
        for one in readers:
            one.requires_grad_(True)
        logits = model(ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        for index, gradient in enumerate(torch.autograd.grad(loss, readers)):
            squares[index] = squares[index] + gradient.double().numpy() ** 2
    model.requires_grad_(False)
    scores = score_units(model, Gblm(), ("ffn",), IDS)
    for index, layer in enumerate(anatomy(model).layers):
        seen = []
        with watch(layer.reader("ffn"), seen.append):
            model(IDS)
        assert not scores[index]["ffn"].requires_grad
        weight, gradient = np.abs(readers[index].detach().double().numpy()), np.sqrt(squares[index])
        if family == "gpt2":
            weight, gradient = weight.T, gradient.T
        inputs = np.linalg.norm(seen[0].double().numpy(), axis=0)
        expected = (weight * (100 * gradient + inputs)).sum(0)
        np.testing.assert_allclose(scores[index]["ffn"].squeeze(1).numpy(), expected, rtol=1e-3)
