"""Masks that keep n of every m consecutive inputs of each output: 2:4 of sparse tensor cores, 4:8.

A. Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv 2104.08378: in each group of m
weights of a row the n with the best scores stay, which is the best of all masks of the group for scores
that add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resprout.configs.errors import BadInput


@dataclass(frozen=True)
class Pattern:
    """`keep` of every `group` consecutive weights along a row stay."""

    keep: int
    group: int

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern that "2:4" names; one that is none raises BadInput."""
        keep, _, group = text.partition(":")
        if not keep.isdecimal() or not group.isdecimal() or not 0 < int(keep) < int(group):
            raise BadInput(f"the pattern '{text}' is not kept:group, the first smaller; give 2:4 or 4:8")
        return cls(int(keep), int(group))

    def check(self, weight: Tensor) -> None:
        """Raise BadInput unless the inputs of `weight` [outputs, inputs] fall into whole groups."""
        if weight.shape[1] % self.group:
            raise BadInput(
                f"a weight of {weight.shape[1]} inputs does not fall into groups of {self.group}; leave it "
                "dense, or give a pattern whose group divides it"
            )


def best_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """True where a weight stays: bool [outputs, inputs], of scores of that shape; ties to the lower index."""
    pattern.check(scores)
    groups = scores.reshape(len(scores), -1, pattern.group)
    best = groups.sort(dim=2, descending=True, stable=True).indices[:, :, : pattern.keep]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True)
    return mask.view(scores.shape)


def keeps_to(weight: Tensor, pattern: Pattern) -> bool:
    """Whether every group of `weight` [outputs, inputs] has at most `keep` values other than 0."""
    pattern.check(weight)
    nonzero = (weight != 0).reshape(len(weight), -1, pattern.group).sum(dim=2)
    return bool((nonzero <= pattern.keep).all())
