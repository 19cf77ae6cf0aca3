"""A model as lm-eval calls it, whatever computes it; counts the answers and the prompts that are cut."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resprout.tasks.data.chat import Conversations
from resprout.tasks.evaluate.task import hush
from resprout.tasks.models.generation import end_tokens
from resprout.tasks.models.served import ServedModel


class Counting(HFLM):
    """lm-eval's model of transformers; of its bars and of its cache nothing is left."""

    cut: dict[str, bool]
    """By prompt whether the answer was cut: ended by the limit, not by the model or a stop string."""
    prompts_cut: int

    def reset(self) -> None:
        """Count from here."""
        self.cut, self.prompts_cut, self._batch = {}, 0, list[bool]()
        self.set_cache_hook(self)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as the model's own template writes them, which is rendered within limits."""
        return self._conversations(chat_history, goes_on=not add_generation_prompt)

    @functools.cached_property
    def _conversations(self) -> Conversations:
        return Conversations(self.tokenizer)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **others: Any) -> Any:
        longest = self.max_length + 1
        self.prompts_cut += sum(len(context) + len(choice) > longest for _, context, choice in requests)
        return self._scores(requests, **others)

    def _scores(self, requests: Any, **others: Any) -> Any:
        return super()._loglikelihood_tokens(requests, **others)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        for context, writing in (request.args for request in requests):
            self.prompts_cut += len(self.tok_encode(context)) > self.max_length - writing["max_gen_toks"]
        return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **others: Any) -> Any:
        made = self._written(context, max_length, stop, **others)
        ends = end_tokens(self.model, self.tokenizer)
        for row in made[:, context.shape[1] :].tolist():
            text = self.tokenizer.decode(row)
            self._batch.append(ends.isdisjoint(row) and not any(one in text for one in stop if one))
        return made

    def _written(self, context: Any, max_length: int, stop: list[str], **others: Any) -> Any:
        return super()._model_generate(context, max_length, stop, **others)

    def add_partial(self, attribute: str, request: Any, answer: Any) -> None:
        """Called by lm-eval with each answer, in the order of the batch, as it calls a cache."""
        if attribute == "generate_until":
            self.cut[request[0]] = self._batch.pop(0)


class Served(Counting):
    """A file in another runtime, which reads the context that an item's choices share only once."""

    def _scores(self, requests: Any, **others: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = []
        cut = (_cut(context, choice, self.max_length) for _, context, choice in requests)
        for context, group in itertools.groupby(cut, key=lambda one: one[0]):
            found += self.model.score(context, [choice for _, choice in group])
        return found

    def _written(self, context: Any, max_length: int, stop: list[str], **others: Any) -> torch.Tensor:
        made: torch.Tensor = self.model.generate(
            context,
            others.get("attention_mask"),
            max_new_tokens=max_length - context.shape[1],
            pad_token_id=self.tokenizer.pad_token_id,
            stop=stop,
        )
        return made


def language_model(
    model: PreTrainedModel | ServedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> Counting:
    """The model for lm-eval; sequences are as long as it takes, 2,048 where it does not say."""
    hush()
    if isinstance(model, ServedModel):
        found: Counting = Served(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=model.room
        )
    else:
        found = Counting(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found.reset()
    return found


def _cut(context: list[int], choice: list[int], longest: int) -> tuple[list[int], list[int]]:
    """As much of the end of both as a model reads at once; of it the choice."""
    kept = [*context, *choice][-(longest + 1) :]
    own = min(len(choice), len(kept) - 1)
    return kept[:-own], kept[-own:]
