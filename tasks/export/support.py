"""Which families can be stored in which formats, and in which layouts, as the formats themselves say."""

from __future__ import annotations

from dataclasses import dataclass

from resprout.configs.errors import BadInput
from resprout.tasks.export.format import FORMATS as EXPORTS
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.quantize.format import FORMATS, QuantizedFormat

UNIFORM, BOTH, NONE = "uniform", "both", "-"
WORDS = "One width for all layers (uniform), also layers of different widths (both), or neither (-)."


@dataclass(frozen=True)
class Support:
    """The layouts of a family that each format can hold, by the format's name."""

    family: str
    layouts: dict[str, tuple[str, ...]]


def stock_shape(family: str) -> Shape:
    """The shape of a family's stock config, with the windows that it has there."""
    from transformers import AutoConfig

    return shape_of(AutoConfig.for_model(family).to_dict())


def supported(family: str, shape: Shape) -> Support:
    """What a model of this shape can be stored in; formats with types in the first of them."""
    found: dict[str, tuple[str, ...]] = {
        one.name: one.declared["layouts"] for one in EXPORTS if not one.declared["quantized"]
    }
    for entry in FORMATS:
        made: QuantizedFormat = FORMATS.get(entry.name)(entry.declared["types"][0])
        try:
            made.check(shape)
        except BadInput:
            found[entry.name] = ()
        else:
            found[entry.name] = made.layouts(shape)
    return Support(family, found)


def table() -> str:
    """All families and formats as a Markdown table."""
    rows = [supported(family, stock_shape(family)) for family in sorted(FAMILIES)]
    names = list(rows[0].layouts)
    lines = [f"| family | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in rows:
        cells = [
            NONE if not layouts else BOTH if len(layouts) > 1 else UNIFORM for layouts in row.layouts.values()
        ]
        lines.append(f"| {row.family} | {' | '.join(cells)} |")
    return "\n".join([WORDS, "", *lines])
