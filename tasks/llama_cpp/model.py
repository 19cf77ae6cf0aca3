"""A GGUF file called as transformers calls a causal language model, so that one evaluator serves both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resprout.tasks.gguf.types import FILE
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.shape import Sizes, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONTEXT_TOKENS = 2048
"""Longest context that is made; a model that takes fewer positions gets those."""


class LlamaCppModel(nn.Module):
    """The model in `folder`/model.gguf on the CPU, in a process of its own that `close` ends.

    Its logits stand where a model of transformers has its last hidden states, and its head hands them on: who
    reads hidden states and calls the head gets logits, [rows, tokens, vocabulary] float32.
    """

    def __init__(self, folder: Path, threads: int) -> None:
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
        self.sizes = Sizes(shape.params, shape.non_embedding_params, (folder / FILE).stat().st_size)
        self.room = min(shape.max_positions or CONTEXT_TOKENS, CONTEXT_TOKENS)
        with ExitStack() as ending:
            self._process = ending.enter_context(LlamaCpp(folder / FILE))
            self._process.load(self.room, threads)
            self._ending = ending.pop_all()

    def close(self) -> None:
        """End the process."""
        self._ending.close()

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text, as the file says."""
        return self._process.loaded.ends

    @property
    def base_model(self) -> LlamaCppModel:
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
        logits = torch.zeros(*input_ids.shape, self._process.loaded.vocab)
        for row, (ids, seen) in enumerate(zip(input_ids, mask.bool(), strict=True)):
            logits[row, seen] = torch.from_numpy(self._process.logits(ids[seen].tolist()).copy())
        found = CausalLMOutput(logits=logits)
        found.last_hidden_state = logits
        return found

    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, in nats; whether it is the greedy one."""
        return self._process.score(context, continuations)

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
        added = [
            self._process.greedy(ids[seen].tolist(), tokens, stop)
            for ids, seen in zip(input_ids, mask.bool(), strict=True)
        ]
        longest = max(map(len, added))
        rows = [one + [pad_token_id] * (longest - len(one)) for one in added]
        return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype)], dim=1)
