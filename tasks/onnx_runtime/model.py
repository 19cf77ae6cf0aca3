"""A graph in ONNX Runtime called as transformers calls a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.models.served import ServedModel
from resprout.tasks.onnx_runtime.library import FILE, WEIGHTS, require_onnx


class OnnxModel(ServedModel):
    """The model in `folder`/model.onnx, in this process."""

    def __init__(self, folder: Path, threads: int) -> None:
        require_onnx()
        from resprout.tasks.onnx_runtime.session import Session

        super().__init__(folder, [FILE, WEIGHTS])
        self._session = Session(folder / FILE, threads)
        self._folder = folder

    def close(self) -> None:
        """Give the memory back."""
        del self._session

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text, as the folder's configs say."""
        stated = getattr(self.generation_config, "eos_token_id", None)
        stated = self.config.eos_token_id if stated is None else stated
        return [one for one in (stated if isinstance(stated, list) else [stated]) if one is not None]

    def logits(self, input_ids: Tensor, seen: Tensor) -> Tensor:
        """Logits of all rows at once."""
        self._session.forget()
        return torch.from_numpy(self._session.read(input_ids.numpy(), seen.numpy()))

    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, in nats; whether it is the greedy one.

        The context is read once, and all continuations behind it together.
        """
        self._session.forget()
        first = torch.from_numpy(self._session.read([context])[0, -1:]).log_softmax(-1)
        longest = max(map(len, continuations))
        rest = torch.zeros(len(continuations), 0, self._session.vocab)
        if longest > 1:
            self._session.spread(len(continuations))
            # Whatever fills the shorter ones stands behind all that is asked of them.
            rows = [[*one[:-1], *[0] * (longest - len(one))] for one in continuations]
            rest = torch.from_numpy(self._session.read(rows)).log_softmax(-1)
        found = []
        for own, behind in zip(continuations, rest, strict=True):
            scores = torch.cat([first, behind[: len(own) - 1]])
            total = scores[torch.arange(len(own)), torch.tensor(own)].double().sum().item()
            found.append((total, scores.argmax(-1).tolist() == list(own)))
        return found

    def write(self, input_ids: Tensor, seen: Tensor, tokens: int, stop: Sequence[str]) -> list[list[int]]:
        """Greedy continuations of all rows at once."""
        self._session.forget()
        ends, tokenizer = set(self.ends), load_tokenizer(self._folder) if stop else None
        reach = max(map(len, stop), default=0) + 1
        rows: list[list[int]] = [[] for _ in input_ids]
        open_rows = set(range(len(rows)))
        logits = self._session.read(input_ids.numpy(), seen.numpy())
        for _ in range(tokens):
            added = logits[:, -1].argmax(-1)
            for at in sorted(open_rows):
                rows[at].append(int(added[at]))
                # A token is at least a byte, a stop string may end within one.
                text = tokenizer.decode(rows[at][-4 * reach :]) if tokenizer is not None else ""
                if rows[at][-1] in ends or any(one in text for one in stop):
                    open_rows.remove(at)
            if not open_rows or len(max(rows, key=len)) == tokens:
                break
            logits = self._session.read(added[:, None])
        return rows
