"""How likely the dense model finds answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resprout.tasks.data.response import collate, head, hidden_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.select.divergence import HEAD_ELEMENTS, batches_of
from resprout.tasks.select.finite import DENSE, require_finite
from resprout.tasks.select.kept_rows import Columns, KeptRows


def following_difficulty(
    model: Any, encoded: Sequence[Encoded], ids: Sequence[str], kept: KeptRows
) -> NDArray[np.float64]:
    """IFD = PPL(y|x) / PPL(y) of each row: above 1 its question makes the answer less likely (2402.00530).

    Not a number for an answer of one token, of which nothing is known alone.
    """
    asked, alone = (response_nll(model, encoded, ids, kept, asked=one) for one in (True, False))
    return np.exp(asked - alone)


@torch.inference_mode()
def response_nll(
    model: Any, encoded: Sequence[Encoded], ids: Sequence[str], kept: KeptRows, asked: bool = True
) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each row's response tokens, in nats: [rows].

    Of a row without a prompt the first token, which nothing predicts, does not count; one of a single token
    has no likelihood, and is not a number.

    Args:
        model: The dense model.
        encoded: Rows.
        ids: Of the rows.
        kept: Where the likelihoods are kept.
        asked: Whether the response follows its prompt; else it stands alone.

    Raises:
        StageFailed: logits that are not finite.
    """
    device = next(model.parameters()).device.type
    chunk = max(1, HEAD_ELEMENTS // model.get_output_embeddings().weight.shape[0])

    def row(place: int) -> Encoded:
        return encoded[place] if asked else Encoded([], encoded[place].response_ids)

    def of(places: list[int]) -> Columns:
        batch = collate([row(place) for place in places]).to(device)
        states = hidden_states(model, batch)
        sums = torch.zeros(2, len(places), dtype=torch.float64)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            logits = head(model, states[batch.positions[part]])
            nll = torch.logsumexp(logits, -1) - logits.gather(1, batch.targets[part, None])[:, 0]
            each = torch.stack([nll, torch.ones_like(nll)]).double().cpu()
            sums.index_add_(1, batch.row[part].cpu(), each)
        require_finite(sums[0].numpy(), DENSE, places, [ids[place] for place in places])
        return {"nll": np.where(sums[1] > 0, sums[0] / sums[1].clamp_min(1), np.nan)}

    name, batches = "answers" if asked else "answers alone", partial(batches_of, device=device)
    lengths = [len(row(place)) for place in range(len(encoded))]
    return kept.complete(name, lengths, batches, of, "rows judged").column("nll")
