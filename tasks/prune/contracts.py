"""What a criterion, an allocator and a repair are given and must return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.tasks.models.anatomy import Units
    from resprout.tasks.prune.statistics import Moments, Statistic

    Scores = Sequence[Mapping[Unit, Tensor]]
    """For each layer and kind of unit: float32 [units, features per unit], higher is worth more."""


class Criterion(Protocol):
    """Says what a unit is worth."""

    calibrated: ClassVar[bool]
    """Whether it looks at the inputs of the reader over the calibration data."""
    units: ClassVar[tuple[Unit, ...]]
    """Kinds of units that it can score."""

    def score(self, units: Units, inputs: Moments | None) -> Tensor:
        """Finite float32 [units, features per unit]; a unit is worth the mean of its row.

        `inputs` holds the moments of the reader's input features, None where `calibrated` is False. A
        criterion that scores units as a whole returns one column.
        """
        ...


class Allocator(Protocol):
    """Spends the budget over the layers."""

    per_layer: ClassVar[bool]
    """Whether layers may get different widths."""

    def allocate(self, request: Request, scores: Scores) -> Shape:
        """The request's shape with widths that fit its limit."""
        ...


class Repair(Protocol):
    """Makes good for the removed units of one part."""

    def statistic(self, features: int) -> Statistic | None:
        """An empty collector of what the repair must know of the reader's inputs; None: nothing."""
        ...

    def repair(self, units: Units, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The weight (and bias) of the uncut reader once only the features `kept` (int64) remain."""
        ...


@dataclass(frozen=True)
class Repaired:
    """A reader after its cut: weight [outputs, kept features], and a bias [outputs] where one is added."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Request:
    """A target brought to numbers.

    `shape` is the uncut model with the biases that the repair will add; `limit` is the largest allowed number
    of unique parameters; `uniform` asks for widths that the family's stock config can state.
    """

    shape: Shape
    limit: int
    kinds: tuple[Unit, ...]
    round_to: int
    uniform: bool = True


def moments_given(inputs: Moments | None) -> Moments:
    """`inputs`, for criteria that are calibrated; None raises TypeError."""
    if inputs is None:
        raise TypeError("a calibrated criterion was called without the moments of its inputs")
    return inputs
