"""Rows that say the same, and near-equal questions with different answers. Ours, only in `mode: auto`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]

SAME_JACCARD = 0.9
_SHINGLE_WORDS = 3
_HASHES, _BANDS = 64, 16  # 4 hashes a band: a pair of Jaccard 0.9 shares a band with probability 1 - 1e-7
_PRIME = 4294967311  # the least above 2^32
_BLOCK = 1024


def near_equal(rows: Sequence[Row]) -> dict[int, int]:
    """Rows whose words are nearly those of an earlier row: MinHash, then exact Jaccard of 3-word shingles.

    Returns:
        {row: the earlier row that stays}.
    """
    shingles = [_shingles(_text(row)) for row in rows]
    generator = np.random.default_rng(0)  # the hash functions are part of the method, not of the run
    factors = generator.integers(1, 2**31, _HASHES, dtype=np.uint64)
    offsets = generator.integers(0, 2**31, _HASHES, dtype=np.uint64)
    buckets: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in range(_BANDS)]
    dropped = dict[int, int]()
    for index, own in enumerate(shingles):
        hashes = np.array(sorted(own), dtype=np.uint64)
        signature = ((hashes[:, None] * factors + offsets) % _PRIME).min(0).reshape(_BANDS, -1)
        keys = [band.tobytes() for band in signature]
        candidates = sorted({other for band, key in zip(buckets, keys, strict=True) for other in band[key]})
        same = next((other for other in candidates if _jaccard(own, shingles[other]) >= SAME_JACCARD), None)
        if same is not None:
            dropped[index] = same
            continue
        for band, key in zip(buckets, keys, strict=True):
            band[key].append(index)
    return dropped


def conflicting(
    rows: Sequence[Row], vectors: Any, cosine: float, dense_nll: NDArray[np.float64]
) -> dict[int, int]:
    """Near-duplicate instructions with different answers, reduced to the one that the dense model likes best.

    Two rows ask the same where their instructions' vectors have at least this cosine, their inputs are
    equal and so are the numbers in their instructions (`add 2 and 3` is no `add 2 and 4`). Rows are kept
    in the order of likelihood, so that a row is dropped only for one that stays.

    Args:
        rows: The rows.
        vectors: Vectors of the instructions, rows of length 1 (or 0): an array or a sparse matrix.
        cosine: Least cosine of near-duplicates.
        dense_nll: Mean negative log-likelihood of each answer under the dense model.

    Returns:
        {dropped row: the row that stays}.
    """
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        alike[_normal(row.get("input")), *_numbers(row)].append(index)
    numbered: dict[str, int] = {}
    answers = np.array([numbered.setdefault(_normal(row["output"]), len(numbered)) for row in rows])
    dropped = dict[int, int]()
    for group in alike.values():
        if len(group) > 1:
            likeliest = sorted(group, key=lambda row: (dense_nll[row], row))
            dropped |= _without_rivals(likeliest, vectors, cosine, answers)
    return dropped


def lexical_vectors(texts: Sequence[str]) -> Any:
    """Sparse TF-IDF of words and word pairs, rows of length 1: a strict measure of near-equal wording.

    The reduced vectors that clustering uses forget rare words, by which questions of one form differ.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    return vectorizer.fit_transform(texts)


def _without_rivals(
    likeliest: Sequence[int], vectors: Any, cosine: float, answers: NDArray[np.int64]
) -> dict[int, int]:
    """Of rows, likeliest first, those near one that stays and has another answer: {dropped: what stays}."""
    order = np.array(likeliest)
    own, given = vectors[order], answers[order]
    stays, dropped = np.zeros(len(order), dtype=bool), dict[int, int]()
    for start in range(0, len(order), _BLOCK):
        near = own[start : start + _BLOCK] @ own.T >= cosine
        near = near if isinstance(near, np.ndarray) else near.toarray()
        for place, neighbours in enumerate(near, start):
            rivals = np.flatnonzero(stays & neighbours & (given != given[place]))
            if len(rivals):
                dropped[likeliest[place]] = likeliest[rivals[0]]
            else:
                stays[place] = True
    return dropped


def _numbers(row: Row) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", str(row["instruction"])))


def _normal(text: Any) -> str:
    return " ".join(str(text or "").lower().split())


def _text(row: Row) -> str:
    return " ".join(str(row.get(column) or "") for column in ("instruction", "input", "output"))


def _shingles(text: str) -> frozenset[int]:
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    parts = (" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(count))
    return frozenset(
        int.from_bytes(blake2b(part.encode(), digest_size=4).digest(), "little") for part in parts
    )


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    return len(first & second) / len(first | second)
