"""Greedy answers of a model to a few prompts, all in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat import chat_texts
from resprout.tasks.models.generation import end_tokens, left_padded, padding_token
from resprout.tasks.models.served import ServedModel
from resprout.tasks.models.shape import shape_of

NEW_TOKENS = 48
"""The longest answer."""


@dataclass(frozen=True)
class Asked:
    """Prompts with their answers; an answer was `cut` where the model had not ended it.

    `chat`: the prompts went through the model's chat template. `note` says why they did not although it has
    one, or why there are no answers.
    """

    answers: list[dict[str, Any]]
    chat: bool
    note: str = ""


@torch.inference_mode()
def ask(model: PreTrainedModel | ServedModel, tokenizer: Any, prompts: Sequence[str]) -> Asked:
    """Answers of at most `NEW_TOKENS` tokens, fewer where the model takes no longer sequences."""
    ids, chat, note = prompt_ids(tokenizer, prompts)
    pad = padding_token(tokenizer)
    longest = max(1, *map(len, ids))
    room = (shape_of(model.config.to_dict()).max_positions or longest + NEW_TOKENS) - longest
    if room < 1:
        return Asked([], chat, f"a prompt has {longest} tokens, which leaves no position for an answer")
    padded, mask = left_padded(ids, pad)
    made = model.generate(
        padded.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=min(NEW_TOKENS, room),
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
    )
    ends = end_tokens(model, tokenizer)
    answers = []
    for prompt, row in zip(prompts, made[:, longest:].tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:end], skip_special_tokens=True).strip()
        answers.append({"prompt": prompt, "answer": text, "cut": end is None})
    return Asked(answers, chat, note)


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> tuple[list[list[int]], bool, str]:
    """The prompts as ids, through the chat template where there is one; whether so, and else why not."""
    texts, chat, note = list(prompts), bool(getattr(tokenizer, "chat_template", None)), ""
    if chat:
        try:
            rows = [{"instruction": prompt, "input": "", "output": ""} for prompt in prompts]
            texts = [begun for begun, _ in chat_texts(tokenizer, rows)]
        except BadInput as error:
            chat, note = False, str(error)
    # A chat template writes the special tokens itself.
    return [tokenizer(text, add_special_tokens=not chat)["input_ids"] for text in texts], chat, note
