"""How many rows PASER works on; imports no torch, so that `validate` can ask."""

from __future__ import annotations

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig

MOST_ROWS = 4000
"""The dense kernel and NMF are of order rows^2."""


def check_size(select: SelectConfig, rows: int) -> None:
    """Raise BadInput where a pool of `rows` rows does not suit the method; reads no model."""
    if select.method != "paser":
        return
    config = select.paser
    if rows > MOST_ROWS:
        raise BadInput(
            f"the pool has {rows} rows, and paser compares up to {MOST_ROWS} all with all; give select.pool "
            "a limit, or set select.method: random"
        )
    fewest = 8 if config.clusters == "auto" else 2 * config.clusters
    if rows < fewest:
        raise BadInput(
            f"the pool has {rows} rows, which are too few for paser.clusters: {config.clusters}; it needs "
            f"{fewest}: add rows, or set fewer clusters"
        )
