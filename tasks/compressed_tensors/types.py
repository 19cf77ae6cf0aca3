"""Types of compressed-tensors checkpoints, by vLLM's names; imports neither torch nor the library."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from resprout.configs.errors import BadInput


@dataclass(frozen=True)
class TensorsType:
    """How weights are rounded: symmetrically, to whole numbers or `floating` ones (E4M3) of `bits` bits.

    `group` consecutive weights of a row share a scale; None: the whole row. With `activations` what a matrix
    is given is rounded to the same bits, with a scale for each token.
    """

    name: str
    bits: int
    group: int | None = None
    floating: bool = False
    activations: bool = False


TYPES = {
    one.name: one
    for one in (
        TensorsType("W8A16", 8),
        TensorsType("W8A8", 8, activations=True),
        TensorsType("FP8", 8, floating=True, activations=True),
        TensorsType("W4A16-G32", 4, 32),
        TensorsType("W4A16-G64", 4, 64),
        TensorsType("W4A16-G128", 4, 128),
        TensorsType("W4A16", 4, 128),
    )
}
GROUPS = tuple(sorted({one.group for one in TYPES.values() if one.group}, reverse=True))
"""Sizes of groups, the smaller files first."""


def tensors_type(name: str) -> TensorsType:
    """The type of this name in any case; BadInput with the nearest."""
    found = TYPES.get(name.upper())
    if found is None:
        near = difflib.get_close_matches(name.upper(), TYPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(
            f"'{name}' is no type of compressed-tensors checkpoint; known are {', '.join(TYPES)}{hint}"
        )
    return found


def grouped(group: int) -> str:
    """The name of the type with groups of this size."""
    return f"W4A16-G{group}"
