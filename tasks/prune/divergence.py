"""How far candidates of a search move the logits: KL divergence from the uncut model's, on few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from resprout.tasks.models.trial import BATCH_TOKENS, Trial
from resprout.tasks.prune.evolution import Candidate
from resprout.tasks.prune.spend import overflow


class Divergence:
    """KL(uncut || candidate) in nats a token, on calibration samples that are drawn anew for each comparison.

    `input_ids` int64 [samples, tokens]; `logits(candidate, ids)` are a candidate's [rows, tokens, vocab].
    """

    def __init__(
        self,
        trial: Trial,
        input_ids: Tensor,
        logits: Callable[[Candidate, Tensor], Tensor],
        random: Random,
    ) -> None:
        self.trial, self.ids, self.logits, self.random = trial, input_ids, logits, random
        self.ends: dict[int, Tensor] = {}

    def of(self, candidates: Sequence[Candidate], tokens: int) -> list[float]:
        """The divergence of each on about `tokens` tokens, the same for all; all there are where fewer."""
        ids, length = self.ids, self.ids.shape[1]
        drawn = sorted(self.random.sample(range(len(ids)), min(len(ids), max(1, -(-tokens // length)))))
        rows = max(1, BATCH_TOKENS // length)
        found = [0.0] * len(candidates)
        for batch in (drawn[first : first + rows] for first in range(0, len(drawn), rows)):
            uncut = self._uncut(batch)
            for index, candidate in enumerate(candidates):
                tried = self.logits(candidate, ids[batch]).float().log_softmax(dim=-1)
                found[index] += (uncut.exp() * (uncut - tried)).sum().item() / len(drawn) / length
        # Of a candidate that overflows nothing is known but that it is no good.
        return [one if math.isfinite(one) else math.inf for one in found]

    def _uncut(self, batch: list[int]) -> Tensor:
        """Log probabilities of the uncut model, whose layers run once for each sample."""
        for sample in batch:
            if sample not in self.ends:
                self.ends[sample] = self.trial.inputs(self.ids[[sample]])[-1]
        end = torch.cat([self.ends[sample] for sample in batch])
        layers = len(self.trial.parts.layers)
        uncut = self.trial.logits(self.ids[batch], start=layers, hidden=end).float().log_softmax(dim=-1)
        if not uncut.isfinite().all():
            raise overflow("a log probability of the model")
        return uncut
