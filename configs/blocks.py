"""How many weights of a row formats of few bits put together; `prune.round_to: auto` goes by that."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

SUPER_BLOCK, BLOCK, GROUP = 256, 32, 128
"""Weights that a K-quant of llama.cpp puts together, that its older types do, and usually others do."""
WHOLE = ("F32", "F16", "BF16")
_GROUP = re.compile(r"-G(\d+)$")


def block_of(name: str) -> int:
    """By how many weights a row must be divisible to be held in a format such as gguf:Q4_K_M throughout."""
    form, _, kind = name.upper().partition(":")
    if form == "GGUF":
        if kind in WHOLE:
            return 1
        kind = kind.partition(":")[0]
        return SUPER_BLOCK if kind.endswith(("_K", "_S", "_M", "_L", "_XS")) else BLOCK
    named = _GROUP.search(kind)
    return int(named[1]) if named else GROUP if kind.startswith("W4") else 1


def multiple_of(formats: Iterable[str]) -> int | None:
    """The multiple that widths must be of for all formats to hold them; None where none asks for one."""
    blocks = math.lcm(*map(block_of, formats))
    return blocks if blocks > 1 else None
