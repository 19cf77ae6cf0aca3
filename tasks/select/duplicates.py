"""Rows that nearly repeat others, and near-equal questions with different answers. Ours, not the paper's."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from resprout.tasks.data.words import words
from resprout.tasks.select.forms import forms_among
from resprout.tasks.select.min_hash import Hashes, SimilarSets, hashes, held_in, jaccard, runs_of_words

Row = Mapping[str, Any]

SAME_JACCARD, RUN_WORDS = 0.9, 3
ALIKE_JACCARD = 0.5
"""Least Jaccard index of two outputs, and of two instructions, of near duplicates."""
ENDS = " .!?。．！？।॥؟…"
"""Sentence-final punctuation and spaces, stripped before two answers are compared."""
FORM_SAMPLE = 10_000
"""Rows, drawn at random, by which forms are found where there are more."""
ALL_PAIRS = 4000
"""Questions of one group up to which each is held against every other. Of larger groups pairs are found by
their words and pairs of words: vectors that are near though few words are the same are missed there."""
MOST_ANSWERS = 4
"""Different answers of a question above which it is open: one story of many is no contradiction, while of a
fact sources give two or three versions, of which one is right."""
_BLOCK, _PAIRS = 1024, 2**16


def near_equal(
    texts: Iterable[str], alike: Callable[[int, int], bool] = lambda place, earlier: True
) -> Iterator[int | None]:
    """Of each text the place of an earlier one that stays and has nearly its words; None without one.

    Pairs are found by MinHash, and judged by the Jaccard index of their runs of three words, of all and of
    those beside what many texts hold, as a prompt that stands before all questions.

    Args:
        texts: The texts; iterated once.
        alike: Given the places of two texts above the threshold, whether they still count as near duplicates.
    """
    whole, gone = [runs_of_words(text, RUN_WORDS) for text in texts], set[int]()
    sets = _beside_forms(whole)
    index = SimilarSets(sets)

    def is_near(number: int, other: int) -> bool:
        pairs = ((sets[number], sets[other]), (whole[number], whole[other]))
        return all(jaccard(*pair) >= SAME_JACCARD for pair in pairs) and alike(number, other)

    for number in range(len(sets)):
        same = next((one for one in index.before(number) if one not in gone and is_near(number, one)), None)
        if same is not None:
            gone.add(number)
        yield same


def _beside_forms(sets: list[Hashes]) -> list[Hashes]:
    """Each set without the runs that are forms of the pool; unchanged if nothing else is in it."""
    count = min(len(sets), FORM_SAMPLE)
    drawn = [sets[place] for place in np.random.default_rng(1).permutation(len(sets))[:count]]
    forms = np.sort(forms_among(drawn, len(drawn)))
    if not len(forms):
        return sets
    return [left if len(left := one[~held_in(one, forms)]) else one for one in sets]


def same_answer(one: Row, other: Row) -> bool:
    """Whether the outputs overlap, and with inputs on both sides the instructions too (Jaccard of runs).

    A long shared document makes rows similar although their questions or answers differ.
    """
    columns = ("instruction", "output") if one.get("input") and other.get("input") else ("output",)
    return all(
        jaccard(*(runs_of_words(_normal(row[column]).rstrip(ENDS), RUN_WORDS) for row in (one, other)))
        >= ALIKE_JACCARD
        for column in columns
    )


class Questions:
    """The different questions of a pool, and which of them ask nearly the same.

    Rows ask the same where their instructions' vectors have at least the cosine, their inputs are equal, and
    so are the numbers in their instructions (`add 2 and 3` is no `add 2 and 4`). A question to which there
    are, with those near it, more than `MOST_ANSWERS` different answers is open: its rows have no rivals.
    """

    def __init__(self, rows: Iterable[Row], vectors: Any, cosine: float) -> None:
        """Compare them.

        Args:
            rows: The rows; they are gone through once.
            vectors: Vectors of the instructions, rows of length 1 (or 0): an array or a sparse matrix.
            cosine: Least cosine of questions that ask the same.
        """
        numbered, answers = dict[tuple[str, str], int](), dict[str, int]()
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self.first = list[int]()
        """Of each question its first row."""
        self.question, self.answer = list[int](), list[int]()
        """Of each row its question, and its answer: equal numbers for equal ones."""
        for place, row in enumerate(rows):
            instruction, given = _normal(row["instruction"]), _normal(row.get("input"))
            question = numbered.setdefault((instruction, given), len(self.first))
            if question == len(self.first):
                self.first.append(place)
                groups[given, *sorted(re.findall(r"\d+(?:[.,]\d+)*", instruction))].append(question)
            self.question.append(question)
            self.answer.append(answers.setdefault(_normal(row["output"]), len(answers)))
        texts = [instruction for instruction, _ in numbered]
        self.near: dict[int, list[int]] = defaultdict(list)
        """Other questions that ask the same as one."""
        for group in groups.values():
            pairs = _all_near if len(group) <= ALL_PAIRS else _likely_near
            for one, other in pairs(group, vectors, self.first, cosine, texts):
                self.near[one].append(other)
                self.near[other].append(one)
        self._answers = self._counted()
        """Of each question the number of different answers to it and those near it; of open ones of some."""

    @property
    def open_rows(self) -> int:
        """How many rows answer an open question."""
        return sum(self._answers[question] > MOST_ANSWERS for question in self.question)

    def contested(self, among: Iterable[int]) -> list[int]:
        """Those of the rows that have a rival (it asks the same and answers otherwise), and the rivals."""
        own = {self.question[row] for row in among}
        asked = own.union(*(self.near.get(one, ()) for one in own if self._is_contested(one)))
        return [
            row
            for row, question in enumerate(self.question)
            if question in asked and self._is_contested(question)
        ]

    def settled(self, dense_nll: NDArray[np.float64], contested: Iterable[int]) -> dict[int, int]:
        """Rows that go, each with the row that stays: the one whose answer the dense model likes best.

        Rows are kept in the order of likelihood, so that a row is dropped only for one that stays.

        Args:
            dense_nll: Mean negative log-likelihood of each answer under the dense model.
            contested: The rows that are looked at.
        """
        stays: dict[int, tuple[int, int]] = {}
        dropped = dict[int, int]()
        for rank, row in enumerate(sorted(contested, key=lambda row: (dense_nll[row], row))):
            question = self.question[row]
            asked = [one for one in (question, *self.near.get(question, ())) if one in stays]
            rivals = [stays[one] for one in asked if self.answer[stays[one][1]] != self.answer[row]]
            if rivals:
                dropped[row] = min(rivals)[1]
            else:
                stays.setdefault(question, (rank, row))
        return dropped

    def _is_contested(self, question: int) -> bool:
        return 1 < self._answers[question] <= MOST_ANSWERS

    def _counted(self) -> list[int]:
        own: list[set[int]] = [set() for _ in self.first]
        for question, answer in zip(self.question, self.answer, strict=True):
            if len(own[question]) <= MOST_ANSWERS:
                own[question].add(answer)
        counts = [len(answers) for answers in own]
        for question, near in self.near.items():
            said = set(own[question])
            for other in near:
                if len(said) > MOST_ANSWERS:
                    break
                said |= own[other]
            counts[question] = len(said)
        return counts


def lexical_vectors(texts: Iterable[str]) -> Any:
    """Sparse TF-IDF of words and word pairs, rows of length 1: a strict measure of near-equal wording.

    The reduced vectors that clustering uses forget rare words, by which questions of one form differ. Texts
    without any word, of symbols say, are zeros.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), tokenizer=words, token_pattern=None, dtype=np.float32
    )
    texts = list(texts)
    analysed = vectorizer.build_analyzer()
    if not any(map(analysed, texts)):
        return csr_matrix((len(texts), 1), dtype=np.float32)
    return vectorizer.fit_transform(texts)


def _all_near(
    group: Sequence[int], vectors: Any, first: Sequence[int], cosine: float, texts: Sequence[str]
) -> Iterator[tuple[int, int]]:
    if len(group) < 2:
        return
    own = vectors[[first[one] for one in group]]
    for start in range(0, len(group), _BLOCK):
        near = own[start : start + _BLOCK] @ own.T >= cosine
        rows, columns = near.nonzero()
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if start + row < column:
                yield group[start + row], group[column]


def _likely_near(
    group: Sequence[int], vectors: Any, first: Sequence[int], cosine: float, texts: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """As `_all_near`, of pairs that share many words; as many of them at once as a block holds."""
    index = SimilarSets(_words_and_pairs(texts[one]) for one in group)
    places = np.array([first[one] for one in group], dtype=np.int64)
    pairs = array("q")
    for place in range(len(group)):
        for other in index.before(place):
            pairs.extend((other, place))
        if len(pairs) >= 2 * _PAIRS or place == len(group) - 1:
            found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            one, other = (vectors[places[side]] for side in found.T)
            products = one * other if isinstance(one, np.ndarray) else one.multiply(other)
            near = np.asarray(products.sum(1)).ravel() >= cosine
            yield from ((group[one], group[other]) for one, other in found[near].tolist())
            pairs = array("q")


def _words_and_pairs(text: str) -> Hashes:
    found = words(text)
    return hashes([*found, *map(" ".join, pairwise(found))] or [""])


def _normal(text: Any) -> str:
    return " ".join(str(text or "").lower().split())
