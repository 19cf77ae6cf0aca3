"""A model in another runtime, called as transformers calls a causal language model: one evaluator for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from resprout.tasks.models.shape import Sizes, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONTEXT_TOKENS = 2048
"""Longest context that is made; a model that takes fewer positions gets those."""


class ServedModel(nn.Module, ABC):
    """A file in a model's folder on the CPU, as the program computes it that serves the file.

    Its logits stand where a model of transformers has its last hidden states, and its head hands them on: who
    reads hidden states and calls the head gets logits, [rows, tokens, vocabulary] float32.
    """

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        from transformers import AutoConfig, GenerationConfig

        super().__init__()
        self.config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        self.generation_config = None
        if (folder / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._head = nn.Identity()
        shape = shape_of(self.config.to_dict())
        size = sum((folder / name).stat().st_size for name in files)
        self.sizes = Sizes(shape.params, shape.non_embedding_params, size)
        self.room = min(shape.max_positions or CONTEXT_TOKENS, CONTEXT_TOKENS)

    @property
    @abstractmethod
    def ends(self) -> list[int]:
        """The tokens that end a text."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds."""

    @abstractmethod
    def logits(self, input_ids: Tensor, seen: Tensor) -> Tensor:
        """Logits of each row, [rows, tokens, vocabulary]; `seen` is false at padding, where any will do."""

    @abstractmethod
    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, in nats; whether it is the greedy one."""

    @abstractmethod
    def write(self, input_ids: Tensor, seen: Tensor, tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """The ids that greedy decoding adds to each row, up to the end of its text or one of `stop`."""

    @property
    def base_model(self) -> Self:
        return self

    def get_output_embeddings(self) -> nn.Module:
        """The identity: what `forward` gives are logits already."""
        return self._head

    def tie_weights(self) -> None:
        """Nothing: the file ties what is tied. lm-eval asks every model for it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        """Logits of each row; of positions that the mask hides they are 0."""
        from transformers.modeling_outputs import CausalLMOutput

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self.logits(input_ids, mask.bool())
        if not mask.all():
            logits[~mask.bool()] = 0
        found = CausalLMOutput(logits=logits)
        found.last_hidden_state = logits
        return found

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        pad_token_id: int = 0,
        stop: Sequence[str] = (),
        **others: Any,
    ) -> Tensor:
        """Greedy continuations of rows that are padded on the left, behind them: [rows, longest + new].

        Each ends behind the first of the strings of `stop`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = max_new_tokens or self.room - input_ids.shape[1]
        added = self.write(input_ids, mask.bool(), tokens, [one for one in stop if one])
        longest = max(map(len, added))
        rows = [one + [pad_token_id] * (longest - len(one)) for one in added]
        return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype)], dim=1)
