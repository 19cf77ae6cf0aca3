"""How far pruning moved the model on each row: Jensen-Shannon divergence (PASER, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.job import WHOLE, Progress, Share
from resprout.tasks.data.batches import by_area
from resprout.tasks.data.response import Batch, collate, head, hidden_states
from resprout.tasks.data.template import Encoded

PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Padded tokens of one forward pass."""

FILE = "divergence.safetensors"
"""File in which a shard keeps the divergence of its rows."""

HEAD_ELEMENTS = 2**24
"""Logits (tokens * vocabulary) held at a time; some five float32 arrays of this size are in use at once."""


@dataclass(frozen=True)
class RowDivergences:
    """For each row, in order.

    `jsd`: mean over response tokens, nats in [0, ln 2]. `dense_nll`: mean negative log-likelihood of the
    response under the dense model, nats. `prompt_states`: the dense model's mean hidden state over the
    prompt [rows, hidden], or None where it was not asked for.
    """

    jsd: NDArray[np.float64]
    dense_nll: NDArray[np.float64]
    prompt_states: NDArray[np.float32] | None


def jsd_of_logits(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """JSD(softmax(first / T) || softmax(second / T)) in nats: [tokens], exactly 0 for equal logits.

    JSD = (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2.

    Args:
        first: Float32 logits [tokens, vocabulary].
        second: The same shape.
        temperature: T.
    """
    p, q = torch.softmax(first / temperature, -1), torch.softmax(second / temperature, -1)
    tiny = torch.finfo(p.dtype).tiny
    middle = (p + q).mul_(0.5).clamp_min_(tiny)
    first_half = (p / middle).clamp_min_(tiny).log_().mul_(p).sum(-1)
    second_half = (q / middle).clamp_min_(tiny).log_().mul_(q).sum(-1)
    return ((first_half + second_half) / 2).clamp_(0.0, math.log(2))


@torch.inference_mode()
def measure(
    pruned: Any,
    dense: Any,
    encoded: Sequence[Encoded],
    temperature: float,
    progress: Progress,
    want_prompt_states: bool = False,
    share: Share = WHOLE,
) -> RowDivergences:
    """Divergences of the pruned model from the dense one on each row's response tokens.

    Rows that are not in the share's batches keep 0 everywhere (`batches_of` names those that are).

    Memory is bounded by one pass of both models without their heads and by HEAD_ELEMENTS logits of each.

    Raises:
        BadInput: the models have different vocabularies.
        StageFailed: logits that are not finite.
    """
    device = next(dense.parameters()).device.type
    vocabulary = dense.get_output_embeddings().weight.shape[0]
    other = pruned.get_output_embeddings().weight.shape[0]
    if vocabulary != other:
        raise BadInput(
            f"the pruned model has {other} tokens and the dense one {vocabulary}; select compares their "
            "distributions and needs one vocabulary"
        )
    jsd, nll = np.zeros(len(encoded)), np.zeros(len(encoded))
    states = np.zeros((len(encoded), dense.config.hidden_size), np.float32) if want_prompt_states else None
    chunk = max(1, HEAD_ELEMENTS // vocabulary)
    batches = batches_of(encoded, device, share)
    done, todo = 0, sum(map(len, batches))
    for indices in batches:
        batch = collate([encoded[index] for index in indices]).to(device)
        dense_states, pruned_states = hidden_states(dense, batch), hidden_states(pruned, batch)
        sums = torch.zeros(3, len(indices), dtype=torch.float64)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            sums += _sums(
                head(pruned, pruned_states[batch.positions[part]]),
                head(dense, dense_states[batch.positions[part]]),
                batch,
                part,
                temperature,
                len(indices),
            )
        jsd[indices], nll[indices] = (sums[0] / sums[2]).numpy(), (sums[1] / sums[2]).numpy()
        if states is not None:
            states[indices] = _prompt_means(dense_states, batch, [encoded[index] for index in indices])
        if not np.isfinite(jsd[indices] + nll[indices]).all():
            raise StageFailed(
                "the divergence of the pruned from the dense model is not a number on some rows: one of them "
                "gives logits that are not finite; try model.dtype: float32, or a milder prune.target"
            )
        done += len(indices)
        progress(done, todo, "rows compared")
    return RowDivergences(jsd, nll, states)


def write_rows(found: RowDivergences, rows: Sequence[int], path: Path) -> None:
    """Keep what was found for these rows, bit for bit, as safetensors."""
    index = np.array(rows, dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {"jsd": found.jsd[index], "dense_nll": found.dense_nll[index]}
    if found.prompt_states is not None:
        arrays["prompt_states"] = found.prompt_states[index]
    save_file({"rows": index, **arrays}, path)


def read_rows(paths: Sequence[Path], rows: int) -> RowDivergences:
    """The divergence of all `rows` rows, of which each path holds some."""
    parts = [load_file(path) for path in paths]
    index = np.concatenate([part["rows"] for part in parts])

    def joined(name: str) -> NDArray[Any]:
        values = np.concatenate([part[name] for part in parts])
        found = np.zeros((rows, *values.shape[1:]), values.dtype)
        found[index] = values
        return found

    states = joined("prompt_states") if "prompt_states" in parts[0] else None
    return RowDivergences(joined("jsd"), joined("dense_nll"), states)


def batches_of(encoded: Sequence[Encoded], device: str, share: Share) -> list[list[int]]:
    """Indices of the share's rows in the batches in which the models see them."""
    batches = by_area([len(row) for row in encoded], PASS_TOKENS.get(device, PASS_TOKENS["cuda"]))
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
