"""What a row shows of the text before its answer: what stands directly before, and relevant sentences.

A prompt is answered by few of the sentences of a long context (Provence, Chirkova et al., arXiv 2501.16214);
here sentences are ranked by TF-IDF similarity to the prompt, and those kept stay in document order.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np

from resprout.tasks.data.words import terms

LOOK_BACK = 1000
"""Sentences before a passage among which relevant ones are looked for: the work grows with the document."""
_WORD = re.compile(r"(?<=\s)\S")


class Sentences:
    """The sentences of a document, with their tokens and the weights of their words, and those of prompts."""

    def __init__(
        self, texts: Sequence[str], gaps: Sequence[str], prompts: Sequence[str], count: Callable[[str], int]
    ) -> None:
        """Count tokens and weigh words by how few of the sentences have them (TF-IDF), once for all.

        Args:
            texts: The sentences.
            gaps: What stands before each, white space.
            prompts: What is asked.
            count: Gives the tokens of a text.
        """
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._texts, self._gaps, self._count = texts, gaps, count
        self._tokens = np.array([count(text) for text in texts], dtype=np.int64)
        vectorizer = TfidfVectorizer(
            sublinear_tf=True, stop_words="english", tokenizer=terms, token_pattern=None
        )
        try:
            self._weights = vectorizer.fit_transform(texts)
        except ValueError:
            # Not one of them has a word.
            self._weights = csr_matrix((len(texts), 1))
            self._asked = csr_matrix((len(prompts), 1))
        else:
            self._asked = vectorizer.transform(prompts)

    def before(self, end: int, prompt: int, most_tokens: int) -> str:
        """At most so many tokens of the sentences before the one at place `end`, which has some before it.

        Last come those directly before it, as many as half of the tokens hold and at least one, the last
        words of one that is longer than all tokens. What they leave goes to those nearest to the prompt of
        that number by cosine, then the nearest to them, while they fit.
        """
        begin = end - 1
        left = most_tokens - int(self._tokens[begin])
        if left <= 0:
            return _last_words(self._texts[begin], most_tokens, self._count)
        while begin > 0 and left - self._tokens[begin - 1] >= most_tokens / 2:
            begin -= 1
            left -= int(self._tokens[begin])
        places = [*self._relevant(begin, prompt, left), *range(begin, end)]
        return "".join(self._gaps[place] + self._texts[place] for place in places).lstrip()

    def _relevant(self, end: int, prompt: int, most_tokens: int) -> list[int]:
        """Places before `end`, ascending."""
        start = max(0, end - LOOK_BACK)
        tokens = self._tokens[start:end]
        scores = (self._weights[start:end] @ self._asked[prompt].T).toarray().ravel()
        taken, left, least = list[int](), most_tokens, tokens.min(initial=most_tokens + 1)
        for place in np.lexsort((-np.arange(end - start), -scores)).tolist():
            if left < least:
                break
            if tokens[place] <= left:
                taken.append(start + place)
                left -= int(tokens[place])
        return sorted(taken)


def opening(text: str, sentences: Sequence[tuple[int, int]]) -> int:
    """Where a text goes on behind its opening.

    That is its first sentence, or where this is more than two thirds of the text, words of its first half.
    """
    if len(sentences) > 1 and 3 * sentences[1][0] <= 2 * len(text):
        return sentences[1][0]
    middle = len(text) // 2
    words = [match.start() for match in _WORD.finditer(text, 0, middle + 1)]
    return words[-1] if words else middle


def _last_words(text: str, most_tokens: int, count: Callable[[str], int]) -> str:
    """The last words of a text that fit; of one without white space its last characters, one at least."""
    begin = bisect_left(range(len(text) - 1), True, key=lambda at: count(text[at:]) <= most_tokens)
    word = _WORD.search(text, begin) if begin else None
    return text[word.start() if word else begin :]
