"""A GGUF file called as transformers calls a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from resprout.tasks.gguf.types import FILE
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.served import ServedModel

CHOICES = 8
"""Continuations of a context that are scored together."""


class LlamaCppModel(ServedModel):
    """The model in `folder`/model.gguf, in a process of its own that `close` ends."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, [FILE])
        with ExitStack() as ending:
            self._process = ending.enter_context(LlamaCpp(folder / FILE))
            self._process.load(self.room, threads, 1 + CHOICES, shared=True)
            self._ending = ending.pop_all()

    def close(self) -> None:
        """End the process."""
        self._ending.close()

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text, as the file says."""
        return self._process.loaded.ends

    def logits(self, input_ids: Tensor, seen: Tensor) -> Tensor:
        """Logits row by row, without the padding."""
        logits = torch.zeros(*input_ids.shape, self._process.loaded.vocab)
        for row, (ids, known) in enumerate(zip(input_ids, seen, strict=True)):
            logits[row, known] = torch.from_numpy(self._process.logits(ids[known].tolist()))
        return logits

    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, in nats; whether it is the greedy one."""
        return self._process.score(context, continuations)

    def write(self, input_ids: Tensor, seen: Tensor, tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """Greedy continuations, row by row."""
        return [
            self._process.greedy(ids[known].tolist(), tokens, stop)
            for ids, known in zip(input_ids, seen, strict=True)
        ]
