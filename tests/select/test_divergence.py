from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_model
from resprout.tasks.select import divergence
from resprout.tasks.select.divergence import jsd_of_logits, measure

IDS = [f"r{number}" for number in range(30)]
GENERATOR = torch.Generator().manual_seed(3)


def encoded_rows(count: int = 30) -> list[Encoded]:
    rng = np.random.default_rng(5)
    return [
        Encoded(
            rng.integers(0, 256, rng.integers(2, 30)).tolist(),
            rng.integers(0, 256, rng.integers(1, 20)).tolist(),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def pair(models_folder: Path) -> tuple[Any, Any]:
    return tuple(load_model(models_folder / name, "float32", "cpu") for name in ("pruned", "dense"))  # type: ignore[return-value]


def test_jsd_by_hand() -> None:
    """P = (3/4, 1/4), Q = (1/4, 3/4), M = (1/2, 1/2): both KL are 3/4 ln 3/2 + 1/4 ln 1/2."""
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert jsd_of_logits(p, q).item() == pytest.approx(expected, abs=1e-7)


def test_jsd_bounds() -> None:
    """Disjoint distributions are ln 2 apart, equal ones 0."""
    far = torch.tensor([[1000.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 1000.0], [0.0, 0.0]])
    assert jsd_of_logits(far, other).tolist() == [pytest.approx(math.log(2), abs=1e-6), 0.0]


def test_jsd_of_random_logits() -> None:
    a, b = (torch.randn(50, 300, generator=GENERATOR) * 4 for _ in range(2))
    found = jsd_of_logits(a, b)
    assert torch.equal(found, jsd_of_logits(b, a))
    assert torch.equal(jsd_of_logits(a, a), torch.zeros(50))
    assert float(found.min()) > 0
    assert float(found.max()) < math.log(2)
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_temperature_divides_logits() -> None:
    a, b = (torch.randn(5, 30, generator=GENERATOR) for _ in range(2))
    assert torch.allclose(jsd_of_logits(a, b, 2.0), jsd_of_logits(a / 2, b / 2), atol=1e-7)


def test_rows_against_plain_passes(pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row without padding, full logits, float64; small chunks of the head must change nothing."""
    pruned, dense = pair
    rows = encoded_rows()
    monkeypatch.setattr(divergence, "HEAD_ELEMENTS", 259 * 7)
    found = measure(pruned, dense, rows, IDS, 1.0, silent, want_prompt_states=True)
    assert found.prompt_states is not None
    for index, row in enumerate(rows):
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        start = len(row.prompt_ids)
        with torch.no_grad():
            out = dense(ids, output_hidden_states=True)
            q = out.logits[0, start - 1 : -1].double().log_softmax(-1)
            p = pruned(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        m = torch.logaddexp(p, q) - math.log(2)
        jsd = (0.5 * (p.exp() * (p - m)).sum(-1) + 0.5 * (q.exp() * (q - m)).sum(-1)).mean()
        nll = -q[torch.arange(len(row.response_ids)), torch.tensor(row.response_ids)].mean()
        assert found.jsd[index] == pytest.approx(float(jsd), abs=2e-6)
        assert found.dense_nll[index] == pytest.approx(float(nll), abs=1e-4)
        mean = out.hidden_states[-1][0, :start].mean(0).numpy()
        assert np.allclose(found.prompt_states[index], mean, atol=1e-4)
    assert found.jsd.min() > 1e-4


def test_a_model_against_itself_and_the_other_way_round(pair: tuple[Any, Any]) -> None:
    pruned, dense = pair
    rows = encoded_rows()
    assert measure(dense, dense, rows, IDS, 1.0, silent).jsd.tolist() == [0.0] * len(rows)
    there = measure(pruned, dense, rows, IDS, 1.0, silent).jsd
    back = measure(dense, pruned, rows, IDS, 1.0, silent).jsd
    assert np.allclose(there, back, atol=1e-9)
    assert there.max() < math.log(2)


def test_only_the_response_counts(pair: tuple[Any, Any]) -> None:
    """A row whose response is one token is the JSD at the last prompt position alone."""
    pruned, dense = pair
    prompt = [5, 9, 100, 7]
    one = measure(pruned, dense, [Encoded(prompt, [3])], IDS, 1.0, silent).jsd[0]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        expected = jsd_of_logits(pruned(ids).logits[0, -1:].float(), dense(ids).logits[0, -1:].float())
    assert one == pytest.approx(float(expected), abs=1e-6)


def test_other_vocabulary(pair: tuple[Any, Any], models_folder: Path) -> None:
    _, dense = pair
    small: Any = load_model(models_folder / "dense", "float32", "cpu")
    small.resize_token_embeddings(200)
    with pytest.raises(BadInput, match="has 200 tokens and the dense one 259"):
        measure(small, dense, encoded_rows(2), IDS, 1.0, silent)
