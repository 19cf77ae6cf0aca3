"""Adapters whose ranks grow in training where they count (IncreLoRA, Zhang et al., arXiv 2308.12043).

The update of a weight is alpha / rank times the sum of l_i b_i a_i over its components. Each matrix begins
with one. A step scores a matrix by its update and the gradient of that (the authors' code, increlora.py):

    I = sum |update * gradient| / sqrt(elements),  S <- 0.85 S + 0.15 I,  U <- 0.85 U + 0.15 |I - S|

and where components are due those with the largest S * U get them, max(1, rank // 2) each. A matrix's next
components are trained ahead with l = 1e-5, which itself stays until they are due. A and B are drawn towards
orthonormal rows and columns, at 0.1 times the mean Frobenius distance.

Components are due evenly over the first 40 % of the steps behind a warm-up of 2.5 %, in rounds of at least 7
% of the matrices, as in the authors' run of RTE (1,600 of 3,900 steps, 5 of 72), so that a short training
grows too. Other than there the scale stays alpha / rank, where theirs falls as a matrix grows, no matrix has
more than 4 times the rank, and components have one optimizer with the rest from the first step on.

The score needs the gradient of each whole matrix: while ranks grow, one product more, and memory for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from resprout.tasks.recover.masked import PREFIX

BETA = 0.85
AHEAD = 1e-5
"""l of a component that is trained ahead."""
WARMUP, GROWN_BY, ROUND = 0.025, 0.4, 0.07
"""Shares of the steps before the first round and up to the last, and of the matrices in a round."""
MOST_TIMES = 4
ORTHOGONAL = 0.1
ADAPTER = "default"


def each_time(rank: int) -> int:
    """Components that a matrix gets at once."""
    return max(1, rank // 2)


def room(rank: int) -> int:
    """Components that a matrix of peft's has from the beginning, most of them with l = 0."""
    return MOST_TIMES * rank + each_time(rank)


def grows(student: Any) -> bool:
    """Whether the model's adapters are such."""
    from peft.tuners.adalora.layer import SVDLinear

    return any(isinstance(module, SVDLinear) for module in student.modules())


class Growth:
    """The ranks of the adapters of a model that `with_adapters` made with `ranks: increlora`."""

    def __init__(self, adapted: Any, rank: int) -> None:
        from peft.tuners.adalora.layer import SVDLinear

        self.matrices: dict[str, Any] = {
            name: module for name, module in adapted.named_modules() if isinstance(module, SVDLinear)
        }
        self.rank, self.each = rank, each_time(rank)
        self.ranks = dict.fromkeys(self.matrices, 1)
        self.importance = dict.fromkeys(self.matrices, 0.0)
        self.uncertainty = dict.fromkeys(self.matrices, 0.0)
        self._gradients: dict[str, Tensor] = {}
        for name, module in self.matrices.items():
            module.lora_E[ADAPTER].register_hook(self._without_ahead(name))
            module.register_forward_hook(self._watch(name))
        self._write_ahead()

    @property
    def target(self) -> int:
        """Components of all matrices when they are grown."""
        return self.rank * len(self.matrices)

    @property
    def total(self) -> int:
        return sum(self.ranks.values())

    def begin(self) -> None:
        """Forget the gradients of what was no step."""
        self._gradients.clear()

    def after_backward(
        self, step: int, steps: int, reduce: Callable[[Tensor], Tensor], scale: float = 1.0
    ) -> None:
        """Score, grow where it is due at `step` of `steps`, counted from 1, and add the orthogonal term.

        `reduce` gives the mean over processes; gradients are `scale` times as large as they should be.
        """
        if self.total < self.target:
            for name in self.matrices:
                if name in self._gradients:
                    self._score(name, reduce(self._gradients.pop(name)) / scale)
            self._grow(step, steps)
        for name, module in self.matrices.items():
            live = self._live(name)
            for factor, turned in ((module.lora_A[ADAPTER], False), (module.lora_B[ADAPTER], True)):
                self._straighten(factor, live, turned, scale / (2 * len(self.matrices)))

    @torch.no_grad()
    def finish(self) -> None:
        """Take away what was only trained ahead."""
        for name, module in self.matrices.items():
            module.lora_E[ADAPTER][self.ranks[name] :] = 0.0

    def values(self) -> dict[str, Any]:
        """All that it knows, for a checkpoint."""
        return {"ranks": self.ranks, "importance": self.importance, "uncertainty": self.uncertainty}

    def take(self, values: Mapping[str, Any]) -> None:
        """Go on from `values` with the parameters of the same checkpoint."""
        self.ranks, self.importance = dict(values["ranks"]), dict(values["importance"])
        self.uncertainty = dict(values["uncertainty"])

    def planned(self, step: int, steps: int) -> int:
        """Components of all matrices that are due at a step."""
        first = math.ceil(WARMUP * steps)
        last = max(first + 1, int(GROWN_BY * steps))
        share = min(1.0, max(0.0, (step - first) / (last - first)))
        return len(self.matrices) + int(share * (self.target - len(self.matrices)))

    def most(self, name: str) -> int:
        module = self.matrices[name]
        return min(MOST_TIMES * self.rank, module.in_features, module.out_features)

    @torch.no_grad()
    def _score(self, name: str, gradient: Tensor) -> None:
        module, live = self.matrices[name], self._live(name)
        a, b = module.lora_A[ADAPTER][:live], module.lora_B[ADAPTER][:, :live]
        update = b @ (a * module.lora_E[ADAPTER][:live]) * (module.scaling[ADAPTER] / self.rank)
        found = float((update * gradient).abs().sum()) / math.sqrt(update.numel())
        self.importance[name] = BETA * self.importance[name] + (1 - BETA) * found
        apart = abs(found - self.importance[name])
        self.uncertainty[name] = BETA * self.uncertainty[name] + (1 - BETA) * apart

    def _grow(self, step: int, steps: int) -> None:
        planned = self.planned(step, steps)
        rounds = max(1, round(ROUND * len(self.matrices)))
        due = math.ceil((planned - self.total) / self.each)
        if due < rounds and planned < self.target:
            return
        growing = [name for name, rank in self.ranks.items() if rank < self.most(name)]
        growing.sort(key=lambda name: (-self.importance[name] * self.uncertainty[name], name))
        for name in growing[: max(due, 0)]:
            self.ranks[name] += min(self.each, self.most(name) - self.ranks[name], planned - self.total)
        self._write_ahead()
        if self.total == self.target:
            self.finish()
            self._gradients.clear()

    @torch.no_grad()
    def _write_ahead(self) -> None:
        for name, module in self.matrices.items():
            ahead = module.lora_E[ADAPTER][self.ranks[name] : self._live(name)]
            ahead.fill_(AHEAD)

    def _live(self, name: str) -> int:
        """Components that are trained, those ahead too."""
        return self.ranks[name] + (self.each if self.total < self.target else 0)

    @staticmethod
    def _straighten(factor: Tensor, live: int, turned: bool, weight: float) -> None:
        """Add the gradient of 0.1 `weight` |A A^T - 1| (B^T B where it is turned)."""
        if factor.grad is None:
            return
        part = (factor[:, :live].T if turned else factor[:live]).detach().requires_grad_(True)
        apart = part @ part.T - torch.eye(live, device=part.device)
        [gradient] = torch.autograd.grad(ORTHOGONAL * weight * apart.norm(), part)
        (factor.grad[:, :live] if turned else factor.grad[:live]).add_(gradient.T if turned else gradient)

    def _without_ahead(self, name: str) -> Callable[[Tensor], Tensor]:
        def kept(gradient: Tensor) -> Tensor:
            there = torch.arange(len(gradient), device=gradient.device)[:, None] < self.ranks[name]
            return gradient * there

        return kept

    def _watch(self, name: str) -> Callable[[Any, Any, Any], None]:
        """Add up output gradient times input, before dropout, over a step's micro-batches."""

        def add(given: Tensor, gradient: Tensor) -> None:
            found = gradient.flatten(0, -2).float().T @ given.flatten(0, -2).float()
            known = self._gradients.get(name)
            self._gradients[name] = found if known is None else known + found

        def watch(_: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
            if made.requires_grad and self.total < self.target:
                made.register_hook(lambda gradient: add(given[0].detach(), gradient))

        return watch


def plain(adapted: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The grown adapter as one of LoRA's: settings (ranks and scales by names), tensors by peft's names."""
    from peft.tuners.adalora.layer import SVDLinear

    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for name, module in sorted(adapted.named_modules()):
        if isinstance(module, SVDLinear):
            strength = module.lora_E[ADAPTER].detach()
            there = strength.flatten().nonzero().flatten()
            if not len(there):
                # What nothing was learned about keeps one component, of zero.
                there = torch.zeros(1, dtype=torch.long, device=strength.device)
            own = name.removeprefix(PREFIX)
            # As peft's layer divides.
            divisor = float(module.ranknum[ADAPTER]) + 1e-5
            ranks[own], scales[own] = len(there), module.scaling[ADAPTER] * len(there) / divisor
            a = (module.lora_A[ADAPTER].detach() * strength)[there]
            b = module.lora_B[ADAPTER].detach()[:, there]
            tensors[f"{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{name}.lora_B.weight"] = b.cpu().contiguous()
    return {"rank_pattern": ranks, "alpha_pattern": scales}, tensors
