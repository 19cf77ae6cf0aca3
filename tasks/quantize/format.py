"""Quantised formats: what each must do, which there are, and how a config names one with its type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from resprout.configs.blocks import block_of
from resprout.configs.presets import Layout
from resprout.configs.schema import QUANTIZED, SOURCE_FILE, QuantizeConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from resprout.tasks.models.shape import Shape

Need = Literal["importance", "calibration", ""]
"""What a format is written by beside the model: mean squares of inputs, the samples themselves, nothing."""


class QuantizedFormat(Protocol):
    """A way to store a model in few bits, in one of its types."""

    types: ClassVar[tuple[str, ...]]
    """Names of its types."""
    layerwise: ClassVar[bool]
    """Whether a model that does not fit in memory can be written so, and judged."""

    def __init__(self, kind: str) -> None:
        """Raises BadInput for a type that the format does not have."""
        ...

    def require(self) -> None:
        """Raise BadInput, which names the extra, where what it is written or read by is not installed."""
        ...

    def needs(self, config: QuantizeConfig) -> Need:
        """The input beside the model."""
        ...

    def smaller(self) -> str | None:
        """The name of the next smaller type; None below the smallest."""
        ...

    def layouts(self, shape: Shape) -> tuple[Layout, ...]:
        """Values of prune.layout whose models it can hold, for a model of this shape's family."""
        ...

    def check(self, shape: Shape) -> None:
        """Raise BadInput where a model of this shape cannot be stored so."""
        ...

    def check_source(self, shape: Shape, tokenizer: Mapping[str, Any] | None) -> None:
        """Raise BadInput where the format cannot hold the settings or the tokenizer of the source model.

        `tokenizer` is the object of its tokenizer.json, None where there is none or it is not known yet.
        """
        ...

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: Path,
        folder: Path,
        known: Mapping[str, Tensor],
        about: Mapping[str, str],
        progress: Progress,
    ) -> Mapping[str, float]:
        """Write `model`, loaded from `source`, into the empty `folder`; metrics of what was written.

        `known` are the tensors of the input that it needs: of importance the mean square of each matrix's
        inputs by its name, of calibration `input_ids` [samples, tokens]. `about` is metadata that goes into
        the file: digests of what it was made of, the licence.
        """
        ...


STEPS = 3
"""Types below that of a file in which the dense model is compared with it."""
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


def baselines(formats: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The formats in which the dense model is compared with files in `formats`, by entries of the config.

    The entry quantized stands for the same and the three next smaller files: a file of the pruned model lies
    among those in bytes where pruning took less than such steps would.
    """
    found: dict[str, None] = {}
    for entry in wanted:
        if entry == QUANTIZED:
            found |= {one: None for name in formats for one in (name, *_smaller(name))}
        elif entry != SOURCE_FILE:
            found[entry] = None
    return list(found)


def _smaller(name: str) -> Iterator[str]:
    less: str | None = name
    for _ in range(STEPS):
        less = None if less is None else format_of(less).smaller()
        if less is not None:
            yield less


def misfits(formats: Iterable[str], shape: Shape) -> list[str]:
    """A warning for each GGUF type whose blocks do not fill the rows of a model of this shape."""
    rows = {
        "the hidden size": {shape.hidden},
        "heads of": {groups * shape.head_dim for groups in shape.heads if groups},
        "FFN widths of": {width for width in shape.ffn if width},
    }
    found = []
    for name in formats:
        block = block_of(name)
        short = {
            part: sorted(length for length in lengths if length % block) for part, lengths in rows.items()
        }
        named = [f"{part} {', '.join(map(str, lengths))}" for part, lengths in short.items() if lengths]
        if split(name)[0] == "gguf" and named:
            found.append(
                f"{name} takes {block} weights of a row together, which does not divide {', '.join(named)}: "
                "llama.cpp stores those matrices in larger types; prune.round_to: auto keeps FFN widths "
                "whole, and types such as gguf:Q4_0 take 32 weights together"
            )
    return found
