"""How likely the dense model finds answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resprout.configs.errors import StageFailed
from resprout.tasks.core.job import Progress
from resprout.tasks.data.response import collate, head, hidden_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.select.divergence import HEAD_ELEMENTS, batches_of


def following_difficulty(model: Any, encoded: Sequence[Encoded], progress: Progress) -> NDArray[np.float64]:
    """IFD = PPL(y|x) / PPL(y) of each row: above 1 its question makes the answer less likely (2402.00530).

    Not a number for an answer of one token, of which nothing is known alone.
    """
    asked = response_nll(model, encoded, progress)
    alone = response_nll(model, [Encoded([], row.response_ids) for row in encoded], progress)
    return np.exp(asked - alone)


@torch.inference_mode()
def response_nll(model: Any, encoded: Sequence[Encoded], progress: Progress) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each row's response tokens, in nats: [rows].

    Of a row without a prompt the first token, which nothing predicts, does not count; one of a single token
    has no likelihood, and is not a number.

    Raises:
        StageFailed: logits that are not finite.
    """
    device = next(model.parameters()).device.type
    chunk = max(1, HEAD_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    found, done = np.full(len(encoded), np.nan), 0
    for indices in batches_of([len(row) for row in encoded], device):
        batch = collate([encoded[index] for index in indices]).to(device)
        states = hidden_states(model, batch)
        sums = torch.zeros(2, len(indices), dtype=torch.float64)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            logits = head(model, states[batch.positions[part]])
            nll = torch.logsumexp(logits, -1) - logits.gather(1, batch.targets[part, None])[:, 0]
            each = torch.stack([nll, torch.ones_like(nll)]).double().cpu()
            sums.index_add_(1, batch.row[part].cpu(), each)
        if not sums.isfinite().all():
            raise StageFailed(
                "the dense model's logits are not finite on some rows of the pool; try model.dtype: float32"
            )
        found[indices] = np.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1), np.nan)
        done += len(indices)
        progress(done, len(encoded), "rows judged")
    return found
