"""Sentence embeddings of instructions, from which clusters are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import Progress
from resprout.tasks.data.batches import by_area
from resprout.tasks.data.words import terms
from resprout.tasks.models.load import code_refused, require_all
from resprout.tasks.select.cluster import Matrix
from resprout.tasks.select.finite import ENCODER, require_finite

SVD_WIDTH = 128
ENCODER_TOKENS = 256
PASS_TOKENS = 4096
MOST_ROWS = 4000
"""Rows above which embeddings are kept in float32."""
FITTED_ROWS = 20_000
"""Rows at most, drawn at random, that the SVD is fitted on."""
HELD = 2**25
"""Similarities that are held at once."""


def tfidf(texts: Sequence[str], seed: int) -> Matrix:
    """TF-IDF reduced by truncated SVD to 128 columns at most, rows of length 1: [texts, columns].

    Terms are words; in scripts without spaces, characters and bigrams of characters. A text without any term
    in common with another may come out as zeros.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    dtype = np.float64 if len(texts) <= MOST_ROWS else np.float32
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, stop_words="english", tokenizer=terms, token_pattern=None, dtype=dtype
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise BadInput(
            "the pool's instructions hold no words but stop words, so tfidf cannot tell them apart; check "
            "the template for `instruction`, or set paser.embedder: hidden"
        ) from error
    columns = min(SVD_WIDTH, min(weights.shape) - 1)
    if columns < 1:
        return unit_rows(weights.toarray())
    drawn = np.sort(np.random.default_rng(seed).permutation(len(texts))[:FITTED_ROWS])
    svd = TruncatedSVD(columns, random_state=seed).fit(
        weights if len(drawn) == len(texts) else weights[drawn]
    )
    return unit_rows(svd.transform(weights).astype(dtype, copy=False))


def hidden(prompt_states: NDArray[np.float32]) -> Matrix:
    """The dense model's mean prompt states, centred, rows of length 1: [rows, hidden].

    The states of all prompts share one large direction; without it the cosine tells prompts apart.
    """
    states = prompt_states.astype(np.float64 if len(prompt_states) <= MOST_ROWS else np.float32)
    return unit_rows(states - states.mean(0))


@torch.inference_mode()
def minilm(
    folder: Path, texts: Sequence[str], ids: Sequence[str], dtype: str, device: str, progress: Progress
) -> tuple[Matrix, NDArray[np.bool_]]:
    """Mean-pooled last states of a BERT-like sentence encoder, rows of length 1: [texts, hidden].

    Texts are cut at 256 tokens, the length that all-MiniLM-L6-v2 was trained for; the second array says of
    each text whether it fills them, so that more of it may not have been seen.

    Args:
        folder: The encoder's.
        texts: Instructions.
        ids: Of their rows.
        dtype: Of its weights; means are taken in float32.
        device: Where it computes.
        progress: Told of each batch.

    Raises:
        BadInput: `folder` holds no encoder, or one without all its weights.
        NotFinite: states that are not finite.
    """
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise BadInput(
            f"paser.embedder is minilm but {folder} holds no sentence encoder (config.json); set "
            "paser.embedder_source to its folder, or paser.embedder: tfidf"
        )
    with code_refused(str(folder)):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any
        model, found_weights = AutoModel.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # Many encoders come without a pooler, and the mean over the tokens needs none.
    missing = {name for name in found_weights["missing_keys"] if "pooler" not in name}
    require_all({**found_weights, "missing_keys": missing}, str(folder))
    model.to(device).eval()
    tokens = tokenizer(list(texts), truncation=True, max_length=ENCODER_TOKENS)["input_ids"]
    found = np.zeros(
        (len(texts), model.config.hidden_size), np.float64 if len(texts) <= MOST_ROWS else np.float32
    )
    done = 0
    for batch in by_area([len(row) for row in tokens], PASS_TOKENS):
        longest = max(len(tokens[index]) for index in batch)
        padded = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for place, index in enumerate(batch):
            padded[place, : len(tokens[index])] = torch.tensor(tokens[index])
            mask[place, : len(tokens[index])] = 1
        states = model(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state
        states = states.cpu().float()
        weights = mask[:, :, None].float()
        found[batch] = ((states * weights).sum(1) / weights.sum(1)).numpy()
        require_finite(found[batch], ENCODER, batch, [ids[index] for index in batch])
        done += len(batch)
        progress(done, len(texts), "rows embedded")
    return unit_rows(found), np.array([len(row) == ENCODER_TOKENS for row in tokens])


def unit_rows(vectors: Matrix) -> Matrix:
    """Each row divided by its length; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0).astype(vectors.dtype)


def most_alike(vectors: Matrix, others: Matrix, count: int) -> NDArray[np.int32]:
    """Of each vector the places of the `count` others most like it, the likest first: [vectors, count]."""
    found = np.empty((len(vectors), count), dtype=np.int32)
    step = max(1, HELD // len(others))
    for start in range(0, len(vectors), step):
        for place, alike in enumerate(vectors[start : start + step] @ others.T, start):
            near = np.arange(len(others))
            if count < len(others):
                near = np.argpartition(-alike, count)[:count]
            found[place] = near[np.lexsort((near, -alike[near]))]
    return found
