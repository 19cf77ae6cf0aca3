"""RDS+: rows whose representations are like those of target rows (Ivison et al., arXiv 2503.01807)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from resprout.tasks.select.embed import most_alike, unit_rows
from resprout.tasks.select.finite import DENSE, require_finite
from resprout.tasks.select.kept_rows import Columns, KeptRows
from resprout.tasks.select.pool import Choice, Pool, in_order
from resprout.tasks.select.target_rows import read_targets

LIKED = "among those most like the rows of select.capabilities"
REST = "fills what rows like those of select.capabilities left, by id"
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
    model, kept = load_for(job, inputs["dense"]), KeptRows(job.checkpoints, progress)
    wanted = representations(model, targets.encoded, targets.ids, kept, "targets")
    ours = representations(model, pool.encoded, pool.ids, kept, "pool")
    # However they share, no target takes more rows than the budget holds of the shortest.
    most = max(1, int(np.searchsorted(np.cumsum(np.sort(pool.costs)), pool.budget, side="right")))
    best = most_alike(wanted, ours, most)
    found = in_order(in_turn(best, len(pool.rows)), pool, LIKED)
    liked, chosen = np.zeros(len(pool.rows), dtype=bool), set(found.accepted)
    for alike in best:
        liked[alike] = True

    def facts(row: int) -> Mapping[str, Any]:
        return {"reason": REST} if row in chosen and not liked[row] else found.facts(row)

    return replace(found, facts=facts)


@torch.inference_mode()
def representations(
    model: Any, encoded: Sequence[Encoded], ids: Sequence[str], kept: KeptRows, name: str
) -> NDArray[np.float32]:
    """Of each row the mean of the last hidden states, weighted by their places 1, 2, ..., of length 1.

    Equation 1 of the paper: weights i / sum i, so that later tokens, which have seen more, count more.

    Args:
        model: The dense model.
        encoded: Rows.
        ids: Of the rows.
        kept: Where their means are kept.
        name: The rows' name there.

    Raises:
        StageFailed: states that are not finite.
    """
    device = next(model.parameters()).device.type

    def of(places: list[int]) -> Columns:
        batch = collate([encoded[place] for place in places]).to(device)
        states = hidden_states(model, batch).reshape(*batch.input_ids.shape, -1).float()
        weights = batch.attention_mask.cumsum(1) * batch.attention_mask
        weights = weights / weights.sum(1, keepdim=True)
        means = (states * weights[:, :, None]).sum(1).cpu().numpy()
        require_finite(means, DENSE, places, [ids[place] for place in places])
        return {"means": means}

    batches = partial(batches_of, device=device)
    means = kept.complete(name, list(map(len, encoded)), batches, of, "rows embedded").column("means")
    return unit_rows(means)


def in_turn(best: NDArray[np.int32], rows: int) -> list[int]:
    """So many rows in the order of a round robin: each target in turn takes the likest one that is left.

    Args:
        best: Of each target the rows most like it, the likest first: [targets, most]; no more are taken.
        rows: How many there are; what was not taken comes last, by number.
    """
    taken, found = np.zeros(rows, dtype=bool), list[int]()
    lists = [iter(one) for one in best]
    while len(found) < best.shape[1]:
        for one in lists:
            row = next((int(row) for row in one if not taken[row]), None)
            if row is not None:
                taken[row] = True
                found.append(row)
    return found + np.flatnonzero(~taken).tolist()
