"""On-policy distillation (GKD, Agarwal et al., arXiv 2306.13649): the student is taught on its own words.

In a share of the steps the student goes on from each example's prompt, of running text from its first
quarter, by sampling at temperature 1, as long as the example's own response is at most; the teacher judges
those tokens, and there is no cross-entropy with them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resprout.tasks.data.template import Encoded
from resprout.tasks.models.generation import end_tokens, left_padded
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.training_data import TrainingData

TEXT_PROMPT = 4
"""Of an example without prompt one part in so many is what the student goes on from."""


@torch.no_grad()
def sampled(model: Any, data: TrainingData, examples: Sequence[int]) -> TrainingData:
    """Data whose only step holds the examples' prompts with responses that the model drew.

    Draws from torch's generator, and leaves the model in the mode that it was in.
    """
    from transformers import GenerationConfig

    rows = [_asked(data.rows[one]) for one in examples]
    ids, mask = left_padded([row.prompt_ids for row in rows], pad=0)
    ends = end_tokens(model)
    how = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=sorted(ends) or None, pad_token_id=0,
        max_new_tokens=max(len(row.response_ids) for row in rows),
    )  # fmt: skip
    training = model.training
    model.eval()
    device = model.device
    found = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=how)
    model.train(training)
    made = [
        Encoded(row.prompt_ids, _cut(new, len(row.response_ids), ends))
        for row, new in zip(rows, found[:, ids.shape[1] :].cpu(), strict=True)
    ]
    return replace(data, rows=Examples.written([("samples", made)]), steps=[list(range(len(made)))])


def _asked(row: Encoded) -> Encoded:
    """The row with a prompt, which of running text is its beginning."""
    if row.prompt_ids:
        return row
    size = max(1, len(row.response_ids) // TEXT_PROMPT)
    return Encoded(row.response_ids[:size], row.response_ids[size:])


def _cut(tokens: Tensor, most: int, ends: Collection[int]) -> list[int]:
    """Up to and with the first token that ends a response, and no longer than the example's own."""
    found: list[int] = []
    for token in tokens[: max(1, most)].tolist():
        found.append(token)
        if token in ends:
            break
    return found
