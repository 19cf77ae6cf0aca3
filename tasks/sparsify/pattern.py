"""Patterns of semi-structured sparsity, and the methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from resprout.configs.errors import BadInput
from resprout.configs.schema import SparsifyConfig
from resprout.tasks.core.methods import Registry
from resprout.tasks.models.shape import Shape

if TYPE_CHECKING:
    from torch import Tensor


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


def check_sparsity(config: SparsifyConfig, shape: Shape) -> None:
    """Raise BadInput where the method or the pattern does not fit a model of this shape."""
    check_method(config, shape)
    group = Pattern.of(config.pattern).group
    for layer in range(shape.layers):
        for name, inputs in shape.matrices(layer):
            if inputs % group:
                raise BadInput(
                    f"sparsify.pattern {config.pattern} needs inputs in groups of {group}, but {name} of "
                    f"layer {layer} has {inputs}; give a prune.round_to that {group} divides, or no sparsify"
                )


def check_method(config: SparsifyConfig, shape: Shape) -> None:
    """Raise BadInput where the method cannot look into a model of this family."""
    needs = METHODS.entry(config.method).declared["needs"]
    if shape.experts and needs != "weights":
        fitting = [entry.name for entry in METHODS if entry.declared["needs"] == "weights"]
        raise BadInput(
            f"sparsify.method '{config.method}' looks at what each matrix is given, which in a "
            f"{shape.model_type} model, inside experts, no module shows; give sparsify.method: "
            f"{' or '.join(fitting)}"
        )


class Method(Protocol):
    """A method that sets weights of one matrix to zero."""

    needs: ClassVar[str]
    """weights, or inputs: those of the module over the calibration data as well."""

    def statistic(self, features: int) -> Any:
        """An empty collector of the inputs, with `update`; None where the method needs none."""
        ...

    def sparse(self, weight: Tensor, inputs: Any, pattern: Pattern) -> Tensor:
        """The weight [outputs, inputs] with the pattern's zeros, in its own dtype."""
        ...


METHODS: Registry[type[Method]] = Registry("sparsity method", "resprout.tasks.sparsify.methods")
