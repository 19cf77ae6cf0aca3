"""How many rows PASER works on; imports no torch, so that `validate` can ask."""

from __future__ import annotations

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig

MOST_ROWS = 4000
"""Rows up to which all are held against all: the dense kernel and NMF are of order rows^2."""


def check_size(select: SelectConfig, rows: int) -> None:
    """Raise BadInput where a pool of `rows` rows does not suit the method; reads no model."""
    if select.method != "paser":
        return
    config = select.paser
    if config.published and rows > MOST_ROWS:
        raise BadInput(
            f"the pool has {rows} rows, and paser.mode {config.mode} holds every row against every other, up "
            f"to {MOST_ROWS}; set paser.mode: auto, or give select.pool a limit"
        )
    fewest = 8 if config.clusters == "auto" else 2 * config.clusters
    if rows < fewest:
        raise BadInput(
            f"the pool has {rows} rows, which are too few for paser.clusters: {config.clusters}; it needs "
            f"{fewest}: add rows, or set fewer clusters"
        )


def samples(select: SelectConfig, rows: int) -> bool:
    """Whether of so many rows only some are compared, which those are turns out on the way."""
    return rows > MOST_ROWS and not select.paser.published and select.paser.sample_rows is not None
