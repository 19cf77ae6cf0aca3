"""Sets that nearly equal each other, found by MinHash signatures in bands (Broder 1997; datasketch)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint32]
"""A set, as the sorted hashes of what it holds."""


class SimilarSets:
    """Sets by which those similar to another are found.

    A pair of Jaccard index s is found with probability 1 - (1 - s^width)^bands, at the least.
    """

    def __init__(self, bands: int, width: int) -> None:
        self.permutations = bands * width
        self._index = MinHashLSH(num_perm=self.permutations, params=(bands, width))

    def signed(self, sets: Iterable[Hashes]) -> Iterator[MinHash]:
        """The signature of each set. The permutations are part of the method, whatever the run's seed is."""
        given = (one.tolist() for one in sets)
        return MinHash.generator(given, num_perm=self.permutations, seed=1, hashfunc=int)

    def like(self, signature: MinHash) -> list[int]:
        """Numbers of the sets that may be similar, ascending."""
        return sorted(map(int, self._index.query(signature)))

    def add(self, number: int, signature: MinHash) -> None:
        """Let a set be found."""
        self._index.insert(str(number), signature, check_duplication=False)


def runs_of_words(text: str, length: int) -> Hashes:
    """The runs of so many words and marks in a text; one of all of them where it has fewer."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    count = max(1, len(words) - length + 1)
    return hashes(" ".join(words[start : start + length]) for start in range(count))


def hashes(parts: Iterable[str]) -> Hashes:
    """The set of these strings."""
    found = [int.from_bytes(blake2b(one.encode(), digest_size=4).digest(), "little") for one in parts]
    return np.unique(np.array(found, dtype=np.uint32))


def jaccard(first: Hashes, second: Hashes) -> float:
    """Share of what two sets hold together that both hold."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
