"""Types of GGUF files that llama.cpp quantises to, by its own names; imports neither torch nor llama.cpp."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
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


EMBEDDINGS = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
"""Types of the embedding and the output matrix that a name can give, by ggml's names."""
SMALLER_EMBEDDING = "Q5_0"
"""What `smaller` takes first from a file of few bits, whose embedding llama.cpp holds in Q6_K or Q8_0."""
LARGER_EMBEDDING = "Q8_0"
FEW_BITS = 5.5


@dataclass(frozen=True)
class FileType:
    """A file's type, and that of its embedding and output matrix where it is not llama.cpp's own choice."""

    kind: GgufType
    embedding: str | None = None

    @property
    def name(self) -> str:
        """Return it as a config spells it, say Q4_K_M or Q4_0:Q5_0."""
        return self.kind.name + (f":{self.embedding}" if self.embedding else "")


def file_type(name: str) -> FileType:
    """Return the type that a name such as Q4_0 or Q4_0:Q5_0 says in any case; BadInput with the nearest."""
    kind, _, embedding = name.upper().partition(":")
    found = GgufType[_known(kind, GgufType.__members__, "type of a GGUF file")]
    if embedding and found in PLAIN:
        raise BadInput(
            f"gguf:{name} names a type for the embedding, but {kind} quantises nothing; give gguf:{kind}"
        )
    return FileType(found, _known(embedding, EMBEDDINGS, "type of an embedding") if embedding else None)


def _known(name: str, among: Collection[str], what: str) -> str:
    if name not in among:
        near = difflib.get_close_matches(name, among, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"'{name}' is not a {what}; known are {', '.join(among)}{hint}")
    return name


LADDER = tuple(
    GgufType[name] for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
)
"""Types that are in use, the larger files first."""


def smaller(file: FileType) -> FileType | None:
    """Return the file with a smaller embedding, else the type of `LADDER` behind its own; None at the end.

    Behind a type that is not on it comes the first with fewer bits a weight.
    """
    kind = file.kind
    if file.embedding is None and _bits(kind) <= FEW_BITS:
        return FileType(kind, SMALLER_EMBEDDING)
    order = [one for one in LADDER if one == kind or _bits(one) < _bits(kind)]
    less = next((one for one in order if one != kind), None)
    return None if less is None else FileType(less, file.embedding)


def _bits(kind: GgufType) -> float:
    """Bits a weight as the name says them: 4 of Q4_K_M; of its variants the larger a little more."""
    digits = "".join(letter for letter in kind.name.partition("_")[0] if letter.isdigit())
    return int(digits) + (0.5 if kind.name.endswith(("_1", "_M", "_L", "_K")) else 0.0)


def gguf_bytes(name: str, params: int, embedding_params: int) -> float:
    """Return about how many bytes a file of this type has, without its vocabulary."""
    file = file_type(name)
    embedding = file.embedding or (file.kind.name if file.kind in PLAIN else LARGER_EMBEDDING)
    layers = (params - embedding_params) * bytes_per_weight(file.kind.name)
    return layers + embedding_params * bytes_per_weight(embedding)


def bytes_per_weight(name: str) -> float:
    """Return the bytes that a weight takes in most matrices of a file of this type: 0.625 in Q4_1."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    parts = name.partition(":")[0].split("_")
    # A file of type Q4_K_M or IQ3_M holds most matrices in Q4_K and IQ3_S.
    block = "_".join(parts[:2]) if "K" in parts else "_".join(parts).replace("IQ3_M", "IQ3_S")
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[block]]
    return size / weights
