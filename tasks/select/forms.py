"""Forms: words that many rows of a pool have in common, which tell nothing of any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORM_ROWS, FORM_SHARE = 20, 0.01
"""Rows of the pool, and share of them, from which a run of words that all hold is a form of theirs: a prompt
that a team puts before each question, in the pool as in its evaluation, says nothing of what was asked."""


def forms_among(found: Sequence[NDArray[Any]], rows: int) -> NDArray[Any]:
    """The runs that many of so many rows hold, the most common first; `found` are those of each row."""
    if not found:
        return np.empty(0, dtype=np.int64)
    runs, holders = np.unique(np.concatenate([np.unique(one) for one in found]), return_counts=True)
    common = (holders >= FORM_ROWS) & (holders > FORM_SHARE * rows)
    return runs[common][np.argsort(-holders[common], kind="stable")]
