"""How far pruning moved the model on each row: Jensen-Shannon divergence (PASER, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import WHOLE, Progress, Share
from resprout.tasks.data.batches import by_area
from resprout.tasks.data.response import Batch, collate, head, hidden_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.select.finite import DENSE, PRUNED, require_finite
from resprout.tasks.select.kept_rows import ROWS, Columns, KeptRows

PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Padded tokens of one forward pass."""

FILE = "divergence.safetensors"
"""File in which a shard keeps the divergence of its rows."""

HEAD_ELEMENTS = 2**24
"""Logits (tokens * vocabulary) held at a time; some five float32 arrays of this size are in use at once."""


@dataclass(frozen=True)
class RowDivergences:
    """For each row, in order; not a number for a row that was not compared.

    `jsd`: mean over response tokens, nats in [0, ln 2]. `dense_nll`: mean negative log-likelihood of the
    response under the dense model, nats. `prompt_states`: the dense model's mean hidden state over the
    prompt [rows, hidden], or None where it was not asked for. `error`: how far `jsd` may be off at most, or
    None where both models were asked.
    """

    jsd: NDArray[np.float64]
    dense_nll: NDArray[np.float64]
    prompt_states: NDArray[np.float32] | None = None
    error: NDArray[np.float64] | None = None

    @classmethod
    def empty(cls, rows: int, hidden: int = 0) -> RowDivergences:
        """Of so many rows, none of them compared yet; with room for states of that size."""
        states = np.zeros((rows, hidden), np.float32) if hidden else None
        return cls(np.full(rows, np.nan), np.full(rows, np.nan), states)

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """What there is, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}

    def put(self, rows: Sequence[int] | NDArray[np.int64], other: RowDivergences) -> None:
        """Take over what was found for these rows, one after another."""
        self.jsd[rows], self.dense_nll[rows] = other.jsd, other.dense_nll
        if self.prompt_states is not None and other.prompt_states is not None:
            self.prompt_states[rows] = other.prompt_states


def jsd_of_logits(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """JSD(softmax(first / T) || softmax(second / T)) in nats: [tokens], exactly 0 for equal logits.

    JSD = (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2.

    Args:
        first: Float32 logits [tokens, vocabulary].
        second: The same shape.
        temperature: T.
    """
    return jsd_of_probabilities(
        torch.softmax(first / temperature, -1), torch.softmax(second / temperature, -1)
    )


def jsd_of_probabilities(p: Tensor, q: Tensor) -> Tensor:
    """The same of distributions: float32 [tokens, events] each."""
    tiny = torch.finfo(p.dtype).tiny
    middle = (p + q).mul_(0.5).clamp_min_(tiny)
    first_half = (p / middle).clamp_min_(tiny).log_().mul_(p).sum(-1)
    second_half = (q / middle).clamp_min_(tiny).log_().mul_(q).sum(-1)
    return ((first_half + second_half) / 2).clamp_(0.0, math.log(2))


def on_prompts(encoded: Sequence[Encoded]) -> list[Encoded]:
    """The rows with their prompts in place of a response: each token but the first is to be predicted."""
    return [Encoded([], row.prompt_ids) for row in encoded]


class Comparison:
    """Two models, of which one may be held against the other on any rows."""

    def __init__(
        self,
        pruned: Any,
        dense: Any,
        temperature: float = 1.0,
        prompt_states: bool = False,
        name: str = PRUNED,
    ) -> None:
        """Keep both; `name` is the first one's in errors.

        Raises:
            BadInput: they have different vocabularies.
        """
        self.pruned, self.dense, self.name = pruned, dense, name
        self.temperature, self.prompt_states = temperature, prompt_states
        self.device = next(dense.parameters()).device.type
        self.vocabulary = dense.get_output_embeddings().weight.shape[0]
        other = pruned.get_output_embeddings().weight.shape[0]
        if self.vocabulary != other:
            raise BadInput(
                f"the pruned model has {other} tokens and the dense one {self.vocabulary}; select compares "
                "their distributions and needs one vocabulary"
            )

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of these lengths by the batches in which the models see them."""
        return batches_of(lengths, self.device)

    @torch.inference_mode()
    def of(self, rows: Sequence[Encoded], places: Sequence[int], ids: Sequence[str]) -> RowDivergences:
        """Divergences on each row's response tokens, in one batch; errors name a row by place and id.

        Memory is bounded by one pass of both models without their heads and by HEAD_ELEMENTS logits of each.

        Raises:
            StageFailed: logits that are not finite.
        """
        batch, chunk = collate(rows).to(self.device), max(1, HEAD_ELEMENTS // self.vocabulary)
        dense_states, pruned_states = hidden_states(self.dense, batch), hidden_states(self.pruned, batch)
        sums = torch.zeros(3, len(rows), dtype=torch.float64)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            sums += _sums(
                head(self.pruned, pruned_states[batch.positions[part]]),
                head(self.dense, dense_states[batch.positions[part]]),
                batch,
                part,
                self.temperature,
                len(rows),
            )
        jsd, nll = (sums[0] / sums[2]).numpy(), (sums[1] / sums[2]).numpy()
        require_finite(nll, DENSE, places, ids)
        require_finite(jsd, self.name, places, ids)
        states = _prompt_means(dense_states, batch, rows) if self.prompt_states else None
        if states is not None:
            require_finite(states, DENSE, places, ids)
        return RowDivergences(jsd, nll, states)


def measure(
    pruned: Any,
    dense: Any,
    encoded: Sequence[Encoded],
    ids: Sequence[str],
    temperature: float,
    progress: Progress,
    want_prompt_states: bool = False,
    share: Share = WHOLE,
) -> RowDivergences:
    """Divergences of the pruned model from the dense one on each row's response tokens.

    Rows that are not in the share's batches are not compared (`batches_of` names those that are).

    Raises:
        BadInput: the models have different vocabularies.
        StageFailed: logits that are not finite; the model and the row are named.
    """
    comparison = Comparison(pruned, dense, temperature, want_prompt_states)
    found = RowDivergences.empty(len(encoded), dense.config.hidden_size if want_prompt_states else 0)
    batches = batches_of([len(row) for row in encoded], comparison.device, share)
    done, todo = 0, sum(map(len, batches))
    for indices in batches:
        rows, names = zip(*((encoded[index], ids[index]) for index in indices), strict=True)
        found.put(indices, comparison.of(rows, indices, names))
        done += len(indices)
        progress(done, todo, "rows compared")
    return found


@torch.inference_mode()
def prompt_states(
    dense: Any, encoded: Sequence[Encoded], ids: Sequence[str], kept: KeptRows, name: str
) -> NDArray[np.float32]:
    """The dense model's mean hidden states over the prompts, by a pass of its own: [rows, hidden].

    Args:
        dense: The model.
        encoded: Rows.
        ids: Of the rows.
        kept: Where their states are kept.
        name: The rows' name there.

    Raises:
        StageFailed: states that are not finite.
    """
    device = next(dense.parameters()).device.type

    def of(places: list[int]) -> Columns:
        rows = [Encoded(encoded[place].prompt_ids, []) for place in places]
        batch = collate(rows).to(device)
        states = _prompt_means(hidden_states(dense, batch), batch, rows)
        require_finite(states, DENSE, places, [ids[place] for place in places])
        return {"states": states}

    lengths, batches = [len(row.prompt_ids) for row in encoded], partial(batches_of, device=device)
    return kept.complete(f"prompts of {name}", lengths, batches, of, "rows embedded").column("states")


def write_rows(found: RowDivergences, rows: Sequence[int] | NDArray[np.int64], path: Path) -> None:
    """Keep what was found for these rows, bit for bit, as safetensors."""
    index = np.array(rows, dtype=np.int64)
    save_file({ROWS: index, **{name: values[index] for name, values in found.columns.items()}}, path)


def batches_of(lengths: Sequence[int], device: str, share: Share = WHOLE) -> list[list[int]]:
    """Rows of these lengths by the share's batches, as the models see them."""
    batches = by_area(lengths, PASS_TOKENS.get(device, PASS_TOKENS["cuda"]))
    return [batches[index] for index in share.of(len(batches))]


def _sums(pruned: Tensor, dense: Tensor, batch: Batch, part: slice, temperature: float, rows: int) -> Tensor:
    """Sums over each row's tokens of (JSD, negative log-likelihood, 1): float64 [3, rows]."""
    nll = torch.logsumexp(dense, -1) - dense.gather(1, batch.targets[part, None])[:, 0]
    each = torch.stack([jsd_of_logits(pruned, dense, temperature), nll, torch.ones_like(nll)])
    sums = torch.zeros(3, rows, dtype=torch.float64)
    return sums.index_add_(1, batch.row[part].cpu(), each.double().cpu())


def _prompt_means(states: Tensor, batch: Batch, rows: Sequence[Encoded]) -> NDArray[np.float32]:
    by_row = states.reshape(*batch.input_ids.shape, -1)
    means = [by_row[index, : len(row.prompt_ids)].float().mean(0) for index, row in enumerate(rows)]
    return torch.stack(means).cpu().numpy()
