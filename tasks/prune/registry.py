"""The criteria, allocators and repairs that a run config may name; imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resprout.tasks.registry import Registry

if TYPE_CHECKING:
    from resprout.tasks.prune.contracts import Allocator, Criterion, Repair

CRITERIA: Registry[type[Criterion]] = Registry("criterion")
CRITERIA.add(
    "magnitude",
    "resprout.tasks.prune.criteria.magnitude:Magnitude",
    "L2 norm of the weights that read a unit; needs no data",
    "arXiv 1608.08710",
)
CRITERIA.add(
    "wanda_sp",
    "resprout.tasks.prune.criteria.wanda_sp:WandaSp",
    "absolute weights times the norm of their input, summed",
    "arXiv 2306.11695, arXiv 2312.11983",
)
CRITERIA.add(
    "flap",
    "resprout.tasks.prune.criteria.flap:Flap",
    "variance of a unit's features times the squared weights that read them (WIFV)",
    "arXiv 2312.11983, WIFV metric",
)

ALLOCATORS: Registry[type[Allocator]] = Registry("allocator")
ALLOCATORS.add(
    "uniform",
    "resprout.tasks.prune.allocators.uniform:Uniform",
    "the same widths in every layer",
)
ALLOCATORS.add(
    "global_standardised",
    "resprout.tasks.prune.allocators.global_standardised:GlobalStandardised",
    "one ranking over all layers and kinds, scores standardised in each",
    "arXiv 2312.11983, adaptive structure search",
)

REPAIRS: Registry[type[Repair]] = Registry("repair")
REPAIRS.add("none", "resprout.tasks.prune.repairs.none:NoRepair", "cut and change nothing else")
REPAIRS.add(
    "bias",
    "resprout.tasks.prune.repairs.bias:Bias",
    "the removed features' mean, through the removed weights, as an output bias",
    "arXiv 2312.11983, baseline bias compensation",
)
REPAIRS.add(
    "least_squares",
    "resprout.tasks.prune.repairs.least_squares:LeastSquares",
    "the kept weights solved again so that the layer's output changes least",
    "arXiv 2403.12983",
)
