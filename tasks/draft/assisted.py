"""Greedy text of a model, alone and with a draft model that proposes tokens, counted and timed.

Speculative decoding: Leviathan et al., ICML 2023, arXiv 2211.17192, in its greedy form, as transformers'
assisted generation does it. Each pass of the target checks all proposed tokens at once, keeps those that are
its own choices, and adds one: the text is the target's, whatever the draft proposes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Written:
    """Tokens written behind a prompt, passes of the target and of the draft (0 without one), seconds."""

    tokens: list[int]
    target_passes: int
    draft_passes: int
    seconds: float

    @property
    def accepted(self) -> int:
        """Proposed tokens that were kept: each pass of the target adds one of its own."""
        return len(self.tokens) - self.target_passes


class Writer:
    """Writes behind prompts, with `draft` proposing `proposed` tokens at a time or without it."""

    def __init__(
        self, target: PreTrainedModel, draft: PreTrainedModel, pad: int, new_tokens: int, proposed: int
    ) -> None:
        self._target, self._draft = target, draft
        self._asked = {
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "pad_token_id": pad,
        }
        told: Any = draft.generation_config
        # As many each time, however sure the draft is: else the rate of acceptance is of another number.
        told.num_assistant_tokens, told.num_assistant_tokens_schedule = proposed, "constant"
        told.assistant_confidence_threshold = 0.0

    @torch.inference_mode()
    def write(self, prompt: Sequence[int], assisted: bool) -> Written:
        """Text behind a prompt, given as ids."""
        ids = torch.tensor([list(prompt)], device=self._target.device)
        helped = {"assistant_model": self._draft} if assisted else {}
        generate: Callable[..., torch.Tensor] = self._target.generate
        with _passes(self._target) as target, _passes(self._draft) as draft:
            _wait(self._target)
            began = time.perf_counter()
            made = generate(ids, attention_mask=torch.ones_like(ids), **self._asked, **helped)
            _wait(self._target)
            seconds = time.perf_counter() - began
        return Written(made[0, ids.shape[1] :].tolist(), len(target), len(draft), seconds)


@contextmanager
def _passes(model: PreTrainedModel) -> Iterator[list[None]]:
    """A list that grows with each forward pass of the model."""
    seen: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        handle.remove()


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
