"""Pruning methods as presets: configs/methods/<name>.yaml names a criterion, allocators and a repair."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.section import Section

FOLDER = Path(__file__).parent / "methods"

Unit = Literal["ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers"]
"""Units of pruning: FFN channels, KV groups with their query heads, query heads inside each group (keys and
values stay), experts with their router rows, hidden channels of the whole model, whole layers, attention and
FFN sublayers."""

DEPTH: tuple[Unit, ...] = ("layers", "sublayers")
"""Units that are pruned alone: each is a whole part of the decoder and has no width."""

Layout = Literal["uniform", "per_layer"]
"""uniform: one width for all layers, which stock classes load; per_layer: a width for each layer."""

RENAMED = {
    "slicegpt_blocks": "slicegpt_blocks is called slicegpt now, and what slicegpt was, one "
    "rotation for the whole model, is shared_rotation; give one of the two",
}
"""The error that a former name of a preset raises."""
REDEFINED = {
    "slicegpt": "prune.method slicegpt now gives each block a rotation of its own, as the paper does (it was "
    "slicegpt_blocks), and needs prune.layout: per_layer; one rotation for the whole model, which it was "
    "before, is prune.method: shared_rotation",
}
"""The error that a name which another preset had raises, unless `prune.layout: per_layer` is given."""


class LayoutAllocators(Section):
    """The allocator that a preset uses in each layout."""

    uniform: str
    """Allocator of `layout: uniform`."""
    per_layer: str
    """Allocator of `layout: per_layer`."""
    depth: str = "lowest_first"
    """Allocator of whole layers and sublayers, in either layout."""

    def of(self, units: tuple[Unit, ...], layout: str) -> str:
        """The allocator of these units in this layout."""
        return self.depth if units[0] in DEPTH else str(getattr(self, layout))


class Preset(Section):
    """A pruning method by name: a paper's, a form of one that its source states, or a control."""

    criterion: str
    """How units are scored."""
    depth_criterion: str | None = None
    """How whole layers and sublayers are scored, where that differs."""
    allocator: LayoutAllocators
    """How the budget is spent over the layers."""
    repair: str
    """The repair, which compensates for the removed units."""
    units: Annotated[tuple[Unit, ...], Field(min_length=1)]
    """Units that the paper prunes; the default of `prune.units`. Of methods that zero single weights, the
    structures that hold these weights."""
    layouts: Annotated[tuple[Layout, ...], Field(min_length=1)]
    """The layouts in which the method is the paper's; the first is what a left-out `prune.layout` means."""
    reduces_to: str | None = None
    """The method that is left where another allocator spends the budget, which is then refused; None:
    something of the paper is left, say its criterion or its repair."""
    criterion_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the criterion."""
    allocator_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the allocator."""
    repair_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the repair."""
    spared_front: float = 0
    """Layers at the front whose widths stay: a number, or a share of the depth below 1."""
    spared_back: float = 0
    """The same at the back."""
    source: Annotated[str, Field(min_length=1)]
    """The paper."""
    summary: Annotated[str, Field(min_length=1)]
    """One line for `resprout methods`."""

    def criterion_of(self, units: tuple[Unit, ...]) -> str:
        """The criterion of these units."""
        return (self.depth_criterion if units[0] in DEPTH else None) or self.criterion

    def own_layout(self, units: tuple[Unit, ...]) -> Layout:
        """The layout of these units where the config names none.

        Layers that all stay as wide as they were need no other than `uniform`; sublayers need `per_layer`.
        """
        if units[0] in DEPTH:
            return "per_layer" if "sublayers" in units else "uniform"
        return self.layouts[0]


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """The preset called `name`; an unknown one raises BadInput with the nearest and all known names."""
    known = preset_names()
    if name in RENAMED:
        raise BadInput(RENAMED[name])
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise BadInput(f"unknown pruning method '{name}'{hint} Known: {', '.join(known)}.")
    return _read(FOLDER / f"{name}.yaml")


@functools.cache
def _read(path: Path) -> Preset:
    """A run asks for its preset in each stage, and parsing YAML takes milliseconds."""
    try:
        return Preset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise BadInput(f"{path.name} is no pruning preset: {error}") from error
