"""Quantised formats: what each must do, which there are, and how a config names one with its type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from resprout.tasks.core.methods import Registry
from resprout.tasks.gguf.types import gguf_type, smaller

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from resprout.tasks.models.shape import Shape

Need = Literal["importance", "calibration", ""]
"""What a format is written by beside the model: mean squares of inputs, the samples themselves, nothing."""


class QuantizedFormat(Protocol):
    """A way to store a model in few bits, in one of its types."""

    def __init__(self, kind: str) -> None:
        """Raises BadInput for a type that the format does not have."""
        ...

    def needs(self, weighed: bool) -> Need:
        """The input beside the model; `weighed`: errors are weighed where the type can do so."""
        ...

    def check(self, shape: Shape) -> None:
        """Raise BadInput where a model of this shape cannot be stored so."""
        ...

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: Path,
        folder: Path,
        known: Mapping[str, Tensor],
        about: Mapping[str, str],
    ) -> Mapping[str, float]:
        """Write `model`, loaded from `source`, into the empty `folder`; metrics of what was written.

        `known` are the tensors of the input that it needs: of importance the mean square of each matrix's
        inputs by its name, of calibration `input_ids` [samples, tokens]. `about` is metadata that goes into
        the file: digests of what it was made of, the licence.
        """
        ...


FORMATS: Registry[type[QuantizedFormat]] = Registry(
    "quantised format", "resprout.tasks.quantize.formats", separator="-"
)


def split(name: str) -> tuple[str, str]:
    """Format and type of a name such as gguf:Q4_K_M."""
    form, _, kind = name.partition(":")
    return form, kind


def format_of(name: str) -> QuantizedFormat:
    """The format in the type that a name says; an unknown one raises BadInput."""
    form, kind = split(name)
    return FORMATS.get(form)(kind)


def baselines(names: Iterable[str]) -> list[str]:
    """The formats in which the dense model is compared with files in these: the same, and the next smaller.

    A file of the pruned model lies between the two in bytes where pruning took less than a bit would.
    """
    found: dict[str, None] = {}
    for name in names:
        found[name] = None
        form, kind = split(name)
        if form == "gguf" and (less := smaller(gguf_type(kind))) is not None:
            found[f"{form}:{less.name}"] = None
    return list(found)
