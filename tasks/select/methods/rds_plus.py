"""RDS+: rows whose representations are like those of target rows (Ivison et al., arXiv 2503.01807)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.data.response import collate, hidden_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_for
from resprout.tasks.select.divergence import batches_of
from resprout.tasks.select.embed import unit_rows
from resprout.tasks.select.pool import Choice, Pool, in_order
from resprout.tasks.select.target_rows import read_targets

DECLARED = {"reads": ["dense", "targets"], "needs_targets": True, "draws": False}


def choose(job: Job[SelectConfig], inputs: Mapping[str, Path], pool: Pool, progress: Progress) -> Choice:
    """Rows most like the rows of `select.capabilities` to the dense model, one for each of them in turn.

    Raises:
        BadInput: there are no such rows.
    """
    if "targets" not in inputs:
        raise BadInput(
            "select.method is rds_plus, which chooses rows like given ones, but there are none; give "
            "select.capabilities.rows (a source of rows like what the model is for), or another method"
        )
    targets = read_targets(job, inputs)
    model = load_for(job, inputs["dense"])
    wanted, ours = (representations(model, rows, progress) for rows in (targets.encoded, pool.encoded))
    order = in_turn(wanted @ ours.T)
    return in_order(order, pool, "among those most like the rows of select.capabilities")


@torch.inference_mode()
def representations(model: Any, encoded: Sequence[Encoded], progress: Progress) -> NDArray[np.float32]:
    """Of each row the mean of the last hidden states, weighted by their places 1, 2, ..., of length 1.

    Equation 1 of the paper: weights i / sum i, so that later tokens, which have seen more, count more.
    """
    device = next(model.parameters()).device.type
    found, done = np.zeros((len(encoded), model.config.hidden_size), np.float32), 0
    for indices in batches_of([len(row) for row in encoded], device):
        batch = collate([encoded[index] for index in indices]).to(device)
        states = hidden_states(model, batch).reshape(*batch.input_ids.shape, -1).float()
        weights = batch.attention_mask.cumsum(1) * batch.attention_mask
        weights = weights / weights.sum(1, keepdim=True)
        found[indices] = (states * weights[:, :, None]).sum(1).cpu().numpy()
        done += len(indices)
        progress(done, len(encoded), "rows embedded")
    return unit_rows(found)


def in_turn(similarities: NDArray[np.float32]) -> list[int]:
    """Columns in the order of a round robin: each row in turn takes the most similar one that is left."""
    best = np.argsort(-similarities, axis=1, kind="stable")
    place, taken, found = np.zeros(len(best), dtype=np.int64), np.zeros(best.shape[1], bool), list[int]()
    while len(found) < best.shape[1]:
        for query in range(len(best)):
            while place[query] < best.shape[1] and taken[best[query, place[query]]]:
                place[query] += 1
            if place[query] == best.shape[1]:
                break
            column = int(best[query, place[query]])
            taken[column] = True
            found.append(column)
    return found
