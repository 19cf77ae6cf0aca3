"""The library of the extra `tensors`: in which version, without progress bars, and its terms for types."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from resprout.tasks.core.extras import require_library

if TYPE_CHECKING:
    from resprout.tasks.compressed_tensors.types import TensorsType

T = TypeVar("T")

PACKAGE, DISTRIBUTION, VERSION = "compressed_tensors", "compressed-tensors", "0.20.1"
DRAWING = (
    "compressed_tensors.compressors.model_compressors.model_compressor",
    "compressed_tensors.quantization.lifecycle.apply",
    "compressed_tensors.offload.dispatch",
)
"""Modules that draw progress bars which nothing turns off, also where transformers calls them."""


@functools.cache
def require_compressed_tensors() -> None:
    """Raise BadInput unless the extra `tensors` is installed in the version known here; imports nothing."""
    require_library(
        "compressed-tensors checkpoints",
        f"the package {DISTRIBUTION}",
        PACKAGE,
        DISTRIBUTION,
        VERSION,
        "tensors",
    )


@functools.cache
def load_library() -> None:
    """Import the library, which is required, and keep it from drawing progress bars."""
    require_compressed_tensors()
    for name in DRAWING:
        drawing: Any = import_module(name)
        if not hasattr(drawing, "tqdm"):
            raise AttributeError(f"{name} draws no progress bar any more; take it from DRAWING")
        drawing.tqdm = _undrawn


def _undrawn(items: Iterable[T], *how: Any, **named: Any) -> Iterable[T]:
    """The items of a loop, in place of tqdm."""
    return items


def weight_arguments(kind: TensorsType) -> Any:
    """The library's QuantizationArgs of the weights of a type."""
    load_library()
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(
        num_bits=kind.bits,
        type="float" if kind.floating else "int",
        strategy="group" if kind.group else "channel",
        group_size=kind.group,
        symmetric=True,
    )


def scheme_of(kind: TensorsType) -> Any:
    """The library's QuantizationScheme of a type, for all linear layers."""
    load_library()
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = None
    if kind.activations:
        inputs = QuantizationArgs(
            num_bits=kind.bits,
            type="float" if kind.floating else "int",
            strategy="token",
            symmetric=True,
            dynamic=True,
        )
    return QuantizationScheme(targets=["Linear"], weights=weight_arguments(kind), input_activations=inputs)
