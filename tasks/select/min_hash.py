"""Sets that nearly equal each other, found by MinHash signatures in bands (Broder 1997; datasketch)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

from resprout.tasks.data.words import words_and_marks

Hashes: TypeAlias = NDArray[np.uint32]
"""A set, as the sorted hashes of what it holds."""

BANDS, WIDTH = 24, 6
"""A pair shares one of 24 bands of 6 with a probability of 1 - 1e-7 where its Jaccard index is 0.9, of 0.999
where it is 0.8, of 0.95 at 0.7, of 0.3 at 0.5."""
MOST_EACH = 16
"""Sets that are found by one band at the most: those of one form all share some, and would all meet."""
_FOLD = 6364136223846793005 ** np.arange(WIDTH, dtype=np.uint64)


class SimilarSets:
    """Sets, of each of which the earlier similar ones can be found: at most BANDS * MOST_EACH.

    Of the sets that share a band each meets the first `MOST_EACH`. So a pair is missed where it shares no
    band, or where each that it shares is one of many earlier sets. Texts of one form fill the bands whose
    words are all the form's; two that are alike beside the form share others too.
    """

    def __init__(self, sets: Iterable[Hashes]) -> None:
        """Sign them. The permutations are part of the method, whatever the run's seed is."""
        keys, given = array("Q"), (one.tolist() for one in sets)
        for signature in MinHash.generator(given, num_perm=BANDS * WIDTH, seed=1, hashfunc=int):
            keys.frombytes((signature.hashvalues.reshape(BANDS, WIDTH) * _FOLD).sum(1).tobytes())
        bands = np.asarray(keys).reshape(-1, BANDS).T
        # Of each band the sets, equal ones one after another; of each set where those begin that it meets.
        self._order, self._begins = (np.empty(bands.shape, dtype=np.int32) for _ in range(2))
        self._met = np.empty(bands.shape, dtype=np.uint8)
        every = np.arange(bands.shape[1])
        for band, order, begins, met in zip(bands, self._order, self._begins, self._met, strict=True):
            order[:] = np.argsort(band, kind="stable")
            first = np.ones(len(every), dtype=bool)
            first[1:] = band[order[1:]] != band[order[:-1]]
            begin = np.maximum.accumulate(np.where(first, every, 0))
            begins[order], met[order] = begin, np.minimum(every - begin, MOST_EACH)

    def before(self, number: int) -> list[int]:
        """Numbers of the earlier sets that may be similar to one, ascending."""
        found = set[int]()
        for order, begin, met in zip(self._order, self._begins[:, number], self._met[:, number], strict=True):
            found.update(order[begin : begin + met].tolist())
        return sorted(found)


def runs_of_words(text: str, length: int) -> Hashes:
    """The runs of so many words and marks in a text; one of all of them where it has fewer."""
    words = words_and_marks(text.lower())
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


def held_in(own: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Of each number whether another set, sorted and not empty, holds it."""
    return other[np.minimum(np.searchsorted(other, own), len(other) - 1)] == own
