"""Methods of semi-structured sparsity by name; imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from resprout.tasks.sparsify.pattern import Pattern


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
