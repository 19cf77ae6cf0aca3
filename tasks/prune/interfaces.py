"""Interfaces of pruning: what criteria, allocators, repairs and schedules are given and must return.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from resprout.configs.errors import BadInput
from resprout.configs.presets import Unit
from resprout.tasks.core.job import Progress, silent
from resprout.tasks.models.shape import Model, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.tasks.models.anatomy import Units
    from resprout.tasks.prune.plan import Plan
    from resprout.tasks.prune.statistics import Statistic, Targets

T = TypeVar("T")
Kinds = tuple[Unit, ...]
"""Kinds of units."""
Needs = Literal["weights", "inputs", "gradients", "model"]
Scores = Sequence[Mapping[Unit, "Tensor"]]
"""For each layer and kind of unit: float32 [units, features per unit], higher is worth more.

Of depth one value each: [1, 1] for a layer, [2, 1] (attention, FFN) for its sublayers.
"""
LayerScores = list[dict[Unit, "Tensor"]]
"""Scores as they are made."""


class Criterion(Protocol):
    """Scores units.

    The engine of its need (tasks/prune/scoring.py) calls the methods that the need gives it:

        weights     score(units)
        inputs      statistic(features), score(units, inputs)
        gradients   gradients(units), statistic(features), score(units, gradients, inputs)
        model       score_model(model, kinds, input_ids, progress)

    `score` returns finite float32 [units, features per unit]; a unit is worth the mean of its row, and a
    criterion that scores units as a whole returns one column. `statistic` returns an empty collector of what
    must be known of the reader's inputs (with gradients None: nothing), `gradients` one of gradients; `score`
    is given them after all calibration data. `score_model` returns the scores of each layer and kind and
    leaves the model as it was; `input_ids` int64 [samples, tokens].
    """

    needs: ClassVar[Needs]
    """Its input: a layer's weights; its reader's inputs over the calibration data as well; gradients
    of the causal-LM loss on that data as well; or the whole model, which it runs itself."""
    units: ClassVar[Kinds]
    """Kinds of units that it can score.

    A score of `hidden` in a layer is what that layer says; a hidden channel is worth the sum over the
    layers. With `cumulative: ClassVar[bool] = True` beside it a score is the loss once that unit and all of
    the layer that score lower are removed; else losses of units add up."""


class GradientStatistic(Protocol):
    """Grows with every gradient of the weights that it names."""

    @property
    def names(self) -> Sequence[str]:
        """Weights whose gradients it is given, by names from the layer on."""
        ...

    @property
    def elements(self) -> int:
        """Float32 numbers that it holds in the end."""
        ...

    def update(self, name: str, gradient: Tensor, share: float) -> None:
        """Add a batch's gradient of the mean loss; the batch has `share` of all predicted tokens.

        The gradient is freed afterwards: what is kept of it must be a copy.
        """
        ...


@runtime_checkable
class GeneralCriterion(Protocol):
    """A criterion that reads open-domain text first (`prune.general`), and then as its need says."""

    needs_general: ClassVar[bool]

    def with_general(
        self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress, mine: range
    ) -> Criterion:
        """The criterion for the layers `mine` once it has seen `input_ids` int64 [samples, tokens]."""
        ...


class Allocator(Protocol):
    """Spends the parameter budget over the layers."""

    per_layer: ClassVar[bool]
    """Whether layers may get different widths."""
    units: ClassVar[Kinds]
    """Kinds of units that it can spend on; left out: all that have widths."""
    runs_model: ClassVar[bool]
    """Whether it runs the model, so that `bench` must be given."""
    narrows: ClassVar[bool]
    """Whether it runs the model with fewer units, by zeroed inputs of readers (WidthProbe); left out: no."""
    latency: ClassVar[bool]
    """Whether it can spend a request's `costs`; left out: no."""

    def allocate(self, request: Request, scores: Scores, bench: Bench | None = None) -> Shape:
        """The request's shape with widths that fit its limit.

        It has as many layers as the request's: a layer that goes has widths of 0, and so has a sublayer.
        """
        ...


class Repair(Protocol):
    """Compensates for the removed units of one part.

    Its class may also declare `whole_model` (it needs all of the model in memory) and `alike_layers` (all
    layers must have the same widths).
    """

    units: ClassVar[Kinds]
    """Kinds of units that it can repair; left out: all that have widths."""

    def statistic(self, features: int) -> Statistic | None:
        """An empty collector of what the repair must know of the reader's inputs; None: nothing."""
        ...

    def repair(self, units: Units, kept: Tensor, statistic: Statistic | None, ridge: float) -> Repaired:
        """The weight (and bias) of the uncut reader once only the features `kept` (int64) remain."""
        ...


@runtime_checkable
class SequentialRepair(Protocol):
    """A repair that can look at what its reader is given once the layers before are cut and repaired."""

    inputs: Literal["dense", "pruned"]
    """Whose inputs it uses: the uncut model's (as a Repair), or the pruned one's."""

    def targets(self, features: int) -> Targets:
        """An empty collector of the kept features in the pruned model and of the outputs to come near to."""
        ...

    def solve(self, units: Units, kept: Tensor, targets: Targets, ridge: float) -> Repaired:
        """As `Repair.repair`."""
        ...


@runtime_checkable
class ModelRepair(Protocol):
    """A repair that first brings the whole model to a form which loses less by the cut.

    One that declares a `basis` says what units of `hidden` are once the model is prepared, as of the
    criterion that scores them.
    """

    def prepare(self, model: Model, plan: Plan, input_ids: Tensor, progress: Progress) -> None:
        """Change `model` in place so that what `plan` leaves of it loses less; no shape changes.

        `input_ids` int64 [samples, tokens].
        """
        ...


@runtime_checkable
class FinalRepair(Protocol):
    """A repair that changes the model once everything is cut."""

    def finish(self, model: Model) -> None:
        """Change weights of the pruned `model` in place; no shape changes."""
        ...


@dataclass(frozen=True)
class Repaired:
    """A reader after its cut: weight [outputs, kept features], and a bias [outputs] where one is added."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Bench:
    """The model and data on which an allocator tries widths; it leaves the model as it was.

    `input_ids` int64 [samples, tokens] are the calibration tokens. `layers` are those that the request and
    the scores are of, by their place in the model; None: all.
    """

    model: Model
    input_ids: Tensor
    progress: Progress = silent
    layers: range | None = None

    @property
    def first(self) -> int:
        """The place in the model of the request's first layer."""
        return 0 if self.layers is None else self.layers.start

    def among(self, layers: Sequence[T]) -> Sequence[T]:
        """Of something for every layer of the model, that of the request's."""
        return layers if self.layers is None else layers[self.layers.start : self.layers.stop]


@dataclass(frozen=True)
class Costs:
    """A budget other than parameters: `of(kind, layer, count)` is what `count` units of a layer cost."""

    limit: float
    of: Callable[[Unit, int, int], float]


@dataclass(frozen=True)
class Request:
    """A size target in numbers.

    `shape` is the uncut model with the biases that the repair will add; `limit` is the largest allowed number
    of unique parameters; `uniform` asks for widths that the family's stock config can state. `costs`, where
    given, are what is to be spent instead of parameters.
    """

    shape: Shape
    limit: int
    kinds: Kinds
    round_to: int
    uniform: bool = True
    costs: Costs | None = None
    cumulative: bool = False
    """Whether a score is the loss without its unit and all of its layer below it, or without it alone."""
    free: range | None = None
    """Layers that may get narrower, None: all. Allocators are asked about these alone (target.py)."""
    floors: Mapping[Unit, tuple[int, ...]] = field(default_factory=dict)
    """Units of a kind that each layer keeps at least; left out: as many as it can work with."""
    embedding_params: int | None = None
    """Parameters that the limit counts for embeddings and head, whatever becomes of them; None: as now."""

    @property
    def free_range(self) -> range:
        """Layers that may get narrower."""
        return range(self.shape.layers) if self.free is None else self.free

    def fits(self, shape: Shape) -> bool:
        """Whether a shape keeps to the limit."""
        if self.embedding_params is None:
            return shape.params <= self.limit
        return shape.non_embedding_params + self.embedding_params <= self.limit


@dataclass(frozen=True)
class Round:
    """One pruning: `train` of all training comes before it, and it goes `done` of the way to the target.

    `shrink`: units outside the plan lose this share of their readers' columns instead of all of it, and may
    come back; None: they are removed. `regrow`: this share of the kept units is exchanged for removed ones.
    """

    train: float
    done: float
    shrink: float | None = None
    regrow: float = 0.0


class Schedule(Protocol):
    """Rounds of pruning: when each prunes, and how far."""

    units: ClassVar[Kinds]
    """Kinds of units that it can remove round by round."""
    trains: ClassVar[bool]
    """Whether it makes no sense without training between its rounds."""

    def all(self) -> list[Round]:
        """The rounds in their order; `train` never falls, and the last one is done."""
        ...


def require(method: str, low: float, high: float = math.inf, **settings: float) -> None:
    """Raise BadInput, which names the method, unless each setting is from `low` to `high`."""
    for name, value in settings.items():
        if not low <= value <= high or not math.isfinite(value):
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise BadInput(f"'{method}' has {name}: {value:g}; give {allowed}")
