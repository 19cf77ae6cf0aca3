"""What a masked model says of itself: columns of its readers that are zero and must stay so; no torch.

The model has the dense shape, so that nothing else tells which of its zeros stand for removed units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

MASKED = "masked.json"

Columns = Mapping[str, tuple[int, Sequence[int]] | None]
"""By a parameter's whole name the dimension and the indices along it that are zero; None: all of it is."""


def write_masked(columns: Columns, folder: Path) -> None:
    """Write masked.json beside a model."""
    text = json.dumps(columns, sort_keys=True)
    (folder / MASKED).write_text(text + "\n", encoding="utf-8")


def read_masked(folder: Path) -> Columns:
    """The masked columns of the model in `folder`; empty where it is not masked."""
    path = folder / MASKED
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {name: None if one is None else (int(one[0]), list(one[1])) for name, one in found.items()}
