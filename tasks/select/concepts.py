"""Concepts of a row: key phrases by RAKE (Rose et al., 2010, Automatic Keyword Extraction, section 1.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]|\n")

TOP = 3
MIN_DOCUMENTS = 2


def phrases(text: str) -> list[str]:
    """Candidate phrases of a text, best first: maximal runs of words without stop words or punctuation.

    A word scores degree / frequency, where its degree is the summed length of the phrases that it stands
    in; a phrase scores the sum of its words. Ties are in alphabetical order.
    """
    runs: list[list[str]] = [[]]
    for token in _WORDS.findall(text.lower()):
        if (token[0].isalnum() or token[0] == "_") and token not in ENGLISH_STOP_WORDS:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    frequency = Counter(word for run in runs for word in run)
    degree = Counter[str]()
    for run in runs:
        for word in run:
            degree[word] += len(run)
    scores = {" ".join(run): sum(degree[word] / frequency[word] for word in run) for run in runs}
    return sorted(scores, key=lambda phrase: (-scores[phrase], phrase))


def literal_concepts(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """All phrases of instruction, input and output of each row."""
    return [phrases(_text(row)) for row in rows]


def top_concepts(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The three best phrases of each row among those that occur in at least two rows.

    A phrase that one row alone has can never conflict, and with all phrases almost every row conflicts. Ours.
    """
    every = literal_concepts(rows)
    documents = Counter(phrase for found in every for phrase in found)
    return [[phrase for phrase in found if documents[phrase] >= MIN_DOCUMENTS][:TOP] for found in every]


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row.get(column) or "") for column in ("instruction", "input", "output"))
