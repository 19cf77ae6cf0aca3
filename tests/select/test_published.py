"""The paper's rules on twelve rows, worked by hand: every number below is from pencil and paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from resprout.configs.schema import PaserConfig
from resprout.tasks.core.job import silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.select import published
from resprout.tasks.select.cluster import Factors
from resprout.tasks.select.pool import Pool

# Six rows at (1, 0) and six at (0, 1). Of the 66 distances 30 are 0 and 36 are sqrt 2, so that sigma is
# sqrt 2 and the kernel 1 within a group and exp(-1/2) across. Its two slowest modes are the constant and the
# sign, both 1 / sqrt 12 a row: Phi Phi^T is 1/6 within a group and 0 across, two blocks, which are the
# clusters.
PLACES = np.repeat([[1.0, 0.0], [0.0, 1.0]], 6, axis=0)
TEXTS = [
    "oak; salt",  # a0
    "red wine; oak",  # a1
    "red wine; salt",  # a2
    "oak; red wine; pepper",  # a3
    "vinegar",  # a4
    "rice",  # a5
    "salt; pepper",  # b0
    "anchor; tide",  # b1
    "tide; pepper",  # b2
    "hull",  # b3
    "mast",  # b4
    "keel",  # b5
]
JSD = [0.30, 0.24, 0.18, 0.12, 0.06, 0.00, 0.15, 0.13, 0.11, 0.09, 0.07, 0.05]
TOKENS = [100, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
# ln(100^2) = 9.2103, ln(10^2) = 4.6052.
IES = [0.032572, 0.052115, 0.039087, 0.026058, 0.013029, 0.0,
       0.032572, 0.028229, 0.023886, 0.019543, 0.015200, 0.010857]  # fmt: skip


def pool() -> Pool:
    ids = [f"a{number}" for number in range(6)] + [f"b{number}" for number in range(6)]
    rows = [
        {"id": name, "instruction": text, "input": "", "output": "?"}
        for name, text in zip(ids, TEXTS, strict=True)
    ]
    tokens = np.array(TOKENS)
    encoded: Sequence[Encoded] = [Encoded([1], [2])] * 12
    costs, whole = np.ones(12, dtype=np.int64), np.zeros(12, dtype=bool)
    return Pool(rows, ids, encoded, tokens, costs, whole, [], budget=6, budget_tokens=105)


def chosen(mode: str) -> tuple[list[str], dict[str, Any], Any]:
    given = pool()
    config = PaserConfig(mode=mode, clusters=2)  # type: ignore[arg-type]
    found = published.select(config, given, PLACES, np.array(JSD), 17, silent)
    choice = found.choice(given)
    facts = {name: choice.facts(row) for row, name in enumerate(given.ids)}
    return [given.ids[row] for row in choice.accepted], facts, found


def test_paper() -> None:
    """CDS 0.15 and 0.10. Of 6 rows 6 * 0.15 / 0.25 = 3.6 and 2.4: floors 3 and 2.

    A by IES a1, a2, a0, a3: a1 {red wine, oak} is first; a2 knows red wine alone; a0 joins oak and salt, both
    known, never together; a3 joins oak and red wine, an edge, and pepper, unknown. B by IES b0: salt and
    pepper are both known, never together; b1 is new; b2 joins tide and pepper; b3 is new.
    """
    rows, facts, found = chosen("paper")
    assert rows == ["a1", "a2", "a3", "b1", "b3"]
    assert found.path["sigma"] == pytest.approx(1.414214, abs=1e-6)
    assert found.degradation.cds == pytest.approx([0.15, 0.10])
    assert found.efficiency == pytest.approx(IES, abs=1e-6)
    assert (found.held, found.grants) == ([6, 6], [3, 2])
    assert [facts[f"a{number}"]["cluster"] for number in range(6)] == [0] * 6
    assert (
        facts["a0"]["reason"] == facts["b0"]["reason"] == "1 pairs of its concepts contradict accepted rows"
    )
    assert (
        facts["a4"]["reason"] == facts["b5"]["reason"] == "does not fit what is left of its cluster's budget"
    )
    assert found.outcome.considered == [4, 4]
    assert found.outcome.rejected == [1, 2]
    assert found.outcome.filled == [3, 2]


def test_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same divergences, clusters in the order of the factors, here B before A.

    B: b0 and b1 are consistent and fill its 2. A: a1 is consistent; a2 joins red wine and salt, a0 oak and
    salt, both known by now; a3 joins pepper to oak and to red wine, two pairs; a4 and a5 are new, and fill
    its 3.
    """
    starts = list[str]()

    def factors(matrix: np.ndarray, clusters: int, seed: int, init: str = "") -> Factors:
        starts.append(init)
        # Phi Phi^T, by hand.
        assert np.allclose(matrix, np.kron(np.eye(2), np.full((6, 6), 1 / 6)), atol=1e-9)
        return Factors(np.repeat([[0.0, 1.0], [1.0, 0.0]], 6, axis=0), np.empty((2, 0)), 0.0)

    monkeypatch.setattr(published.Factors, "of", factors)
    rows, facts, found = chosen("released")
    assert starts == ["random"]
    assert rows == ["b0", "b1", "a1", "a4", "a5"]
    assert found.grants == [2, 3]
    assert [facts[name]["cluster"] for name in ("b0", "a0")] == [0, 1]
    assert facts["a3"]["reason"] == "2 pairs of its concepts contradict accepted rows"
    assert facts["b2"]["reason"] == "does not fit what is left of its cluster's budget"
