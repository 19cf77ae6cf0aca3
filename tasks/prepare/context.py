"""Context pruning: of the text before a passage, keep the sentences that are relevant to the prompt.

A prompt is answered by few of the sentences of a long context (Provence, Chirkova et al., arXiv 2501.16214);
here sentences are ranked by TF-IDF similarity to the prompt, and those kept stay in document order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def relevant(
    sentences: Sequence[str], prompt: str, most_tokens: int, count: Callable[[str], int]
) -> list[int]:
    """Places of the sentences that stay, ascending: by their cosine to the prompt, then the nearest to its
    end.

    Words weigh by how few of the sentences have them (TF-IDF). Sentences are taken in that order while they
    fit into `most_tokens`.
    """
    if not sentences or not most_tokens:
        return []
    scores = _scores(sentences, prompt)
    order = sorted(range(len(sentences)), key=lambda place: (-scores[place], -place))
    taken, left = list[int](), most_tokens
    for place in order:
        tokens = count(sentences[place])
        if tokens <= left:
            taken.append(place)
            left -= tokens
    return sorted(taken)


def _scores(sentences: Sequence[str], prompt: str) -> Sequence[float]:
    """Cosine of each sentence to the prompt; 0 where no sentence has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", token_pattern=r"(?u)\b\w+\b")
    try:
        weights = vectorizer.fit_transform(sentences)
    except ValueError:
        return [0.0] * len(sentences)
    found = weights @ vectorizer.transform([prompt]).T
    return np.asarray(found.todense()).ravel().tolist()
