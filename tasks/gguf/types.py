"""Types of GGUF files that llama.cpp quantises to, by its own names; imports neither torch nor llama.cpp."""

from __future__ import annotations

import difflib
from enum import IntEnum

from resprout.configs.errors import BadInput

FILE = "model.gguf"
"""Name of the weights in a model folder that llama.cpp serves."""


class GgufType(IntEnum):
    """A file's type and its number in llama.cpp (llama_ftype)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 7
    Q5_0 = 8
    Q5_1 = 9
    Q2_K = 10
    Q3_K_S = 11
    Q3_K_M = 12
    Q3_K_L = 13
    Q4_K_S = 14
    Q4_K_M = 15
    Q5_K_S = 16
    Q5_K_M = 17
    Q6_K = 18
    IQ4_NL = 25
    IQ3_S = 26
    IQ3_M = 27
    IQ4_XS = 30
    BF16 = 32


PLAIN = (GgufType.F32, GgufType.F16, GgufType.BF16)
"""Types whose weights are whole floating-point numbers."""
UNWEIGHED = (*PLAIN, GgufType.Q8_0)
"""Types for which llama.cpp takes no importance matrix."""


def gguf_type(name: str) -> GgufType:
    """The type of this name in any case; BadInput with the nearest."""
    found = GgufType.__members__.get(name.upper())
    if found is None:
        near = difflib.get_close_matches(name.upper(), GgufType.__members__, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"'{name}' is no type of GGUF file; known are {', '.join(GgufType.__members__)}{hint}")
    return found


LADDER = tuple(
    GgufType[name] for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
)
"""Types that are in use, the larger files first."""


def smaller(kind: GgufType) -> GgufType | None:
    """The type of `LADDER` behind this one; of a type that is not on it, the first with fewer bits a weight.

    None below the smallest.
    """
    order = [one for one in LADDER if one == kind or _bits(one) < _bits(kind)]
    return next((one for one in order if one != kind), None)


def _bits(kind: GgufType) -> float:
    """Bits a weight as the name says them: 4 of Q4_K_M; of its variants the larger a little more."""
    digits = "".join(letter for letter in kind.name.partition("_")[0] if letter.isdigit())
    return int(digits) + (0.5 if kind.name.endswith(("_1", "_M", "_L", "_K")) else 0.0)


def bytes_per_weight(name: str) -> float:
    """Return the bytes that a weight takes in most matrices of a file of this type: 0.625 in Q4_1."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    parts = name.split("_")
    # A file of type Q4_K_M or IQ3_M holds most matrices in Q4_K and IQ3_S.
    block = "_".join(parts[:2]) if "K" in parts else name.replace("IQ3_M", "IQ3_S")
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[block]]
    return size / weights
