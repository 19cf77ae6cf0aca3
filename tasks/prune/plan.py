"""The pruning plan (plan.json): the units each layer keeps, sizes asked for and reached; imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resprout.configs.errors import BadInput
from resprout.configs.presets import Unit
from resprout.tasks.models.shape import Shape, Sizes, Widths, caches_work, check_numbers, cut_types

PLAN_FILE = "plan.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Size(_Strict):
    """Unique parameters, those outside embeddings and head, and bytes of the weights."""

    params: int
    non_embedding_params: int
    bytes: int

    @classmethod
    def of(cls, sizes: Sizes) -> Size:
        return cls(**asdict(sizes))


class Latency(_Strict):
    """Milliseconds of a forward pass over a batch of calibration tokens by the table that was measured.

    `measured` is what a model of the planned widths took as a whole; where a share was asked for, in the time
    in which the dense model takes `dense`.
    """

    dense: float
    requested: float
    reached: float
    measured: float | None = None


class LayerPlan(_Strict):
    """Kept units of one layer, ascending indices into the uncut layer; none at all: the sublayer is removed.

    `index` is the layer's place in the uncut model, None where all layers stay. `heads` are query heads
    of the kept groups, None where each group keeps all of its own; `experts` likewise. Of a layer with
    experts `ffn` only counts the channels of each; which they are says `expert_ffn` (expert * uncut width +
    channel, of the kept experts), None where all stay.
    """

    index: int | None = None
    ffn: tuple[int, ...]
    kv_groups: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None
    expert_ffn: tuple[int, ...] | None = None

    def widths(self, dense: Widths) -> Widths:
        """The widths that are left of an uncut layer's."""
        groups = len(self.kv_groups)
        return Widths(
            ffn=len(self.ffn),
            kv_heads=groups,
            heads_per_group=len(self.heads) // max(1, groups) if self.heads else dense.heads_per_group,
            experts=dense.experts if self.experts is None else len(self.experts),
        )

    def kept(self) -> dict[Unit, tuple[int, ...]]:
        """The kept units by kind, of those kinds that lose some or could."""
        ffn = self.ffn if self.expert_ffn is None else self.expert_ffn
        found: dict[Unit, tuple[int, ...]] = {"ffn": ffn, "kv_groups": self.kv_groups}
        found |= {} if self.heads is None else {"heads": self.heads}
        return found | ({} if self.experts is None else {"experts": self.experts})


REMOVED_LAYER = LayerPlan(ffn=(), kv_groups=())
"""Of a layer that goes, nothing is kept."""


class Plan(_Strict):
    """Everything that `apply` needs, and what led to it."""

    schema_version: Literal[1] = 1
    model_type: str
    model_digest: str | None = None
    method: str | None = None
    """The method's name, say `flap (uniform widths)`; None in plans of the first release."""
    criterion: str
    allocator: str
    allocator_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Among them the budget of a search; empty in plans of the first releases."""
    repair: str
    repair_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    units: tuple[Unit, ...]
    layout: Literal["uniform", "per_layer"]
    round_to: int
    dtype: str
    dense: Size
    dense_layers: int | None = None
    requested: Size
    reached: Size
    latency: Latency | None = None
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerPlan, ...]
    hidden: tuple[int, ...] | None = None
    """Kept hidden channels of the whole model, or kept directions where the repair rotates; None: all."""

    def source(self, layer: int) -> int:
        """The place in the uncut model of a layer of the pruned one."""
        index = self.layers[layer].index
        return layer if index is None else index

    def by_source(self) -> dict[int, LayerPlan]:
        """The kept units of each layer of the uncut model that stays, by its place there."""
        return {self.source(place): layer for place, layer in enumerate(self.layers)}

    def shape(self, dense: Shape) -> Shape:
        """The widths of the pruned model, given those of the model the plan was made for."""
        sources = [self.source(layer) for layer in range(len(self.layers))]
        widths = [one.widths(dense.widths(i)) for one, i in zip(self.layers, sources, strict=True)]
        hidden = dense.hidden if self.hidden is None else len(self.hidden)
        return replace(dense.with_widths(widths), hidden=hidden, config=cut_types(dense.config, sources))

    def check_model(self, digest: str | None) -> None:
        """Raise BadInput where the plan was made for the weights of another artifact; None is any."""
        if None not in (digest, self.model_digest) and digest != self.model_digest:
            raise BadInput(
                f"the plan was made for the model {self.model_digest}, but the model given is {digest}; give "
                "that model, or make a plan for this one"
            )

    def check_fits(self, dense: Shape) -> None:
        """Raise BadInput unless the plan was made for a model of this shape."""
        # Plans of the first release, which keep every layer, do not say how many there were.
        layers = self.dense_layers or len(self.layers)
        made_for = (self.model_type, layers, self.dense.params)
        given = (dense.model_type, dense.layers, dense.params)
        if made_for != given:
            raise BadInput(
                "the plan was made for a {} model of {} layers and {} parameters, but the model given is "
                "{} of {} layers and {} parameters; make a plan for this model".format(*made_for, *given)
            )
        hidden = range(dense.hidden) if self.hidden is None else self.hidden
        if not hidden or list(hidden) != sorted(set(hidden) & set(range(dense.hidden))):
            raise BadInput(
                f"plan.json keeps hidden channels {list(hidden[:3])}...; give ascending indices from 0 to "
                f"{dense.hidden - 1}, each once and at least one"
            )
        sources = [self.source(layer) for layer in range(len(self.layers))]
        if sources != sorted(set(sources)) or not sources or sources[0] < 0 or sources[-1] >= dense.layers:
            raise BadInput(
                f"plan.json keeps layers {sources[:3]}... of a model of {dense.layers}; give ascending "
                "indices from 0, each once and at least one"
            )
        for layer, source in zip(self.layers, sources, strict=True):
            for kind, kept in layer.kept().items():
                each = dense.counts(kind)[source]
                width = each * (1 if kept is layer.ffn else dense.blocks(kind, source))
                if list(kept) != sorted(set(kept)) or any(not 0 <= unit < width for unit in kept):
                    raise BadInput(
                        f"plan.json keeps {kind} {list(kept[:3])}... in layer {source}; give ascending "
                        f"indices from 0 to {width - 1}, each once"
                    )
                if width > each and len(set(Counter(unit // each for unit in kept).values())) > 1:
                    raise BadInput(
                        f"plan.json keeps more {kind} of one block of {each} than of another in layer "
                        f"{source}; keep as many of each"
                    )
            width = dense.ffn[source]
            if dense.experts and layer.expert_ffn is None and len(layer.ffn) not in (0, width):
                raise BadInput(
                    f"plan.json says that each expert of layer {source} keeps {len(layer.ffn)} of {width} "
                    "channels but not which; list them in expert_ffn"
                )
            if not layer.ffn and not layer.kv_groups:
                raise BadInput(
                    f"plan.json keeps nothing of layer {source}; leave the whole layer out of its layers"
                )
        if not caches_work(self.shape(dense)):
            raise BadInput(
                "plan.json removes the attention of the first layer of its kind, by which caches measure how "
                "long they are, so that no text could be generated; keep its kv_groups"
            )
        if len(sources) < dense.layers:
            check_numbers(dense)


def write_plan(plan: Plan, folder: Path) -> None:
    """Write plan.json to `folder`."""
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True, indent=1)
    (folder / PLAN_FILE).write_text(text + "\n", encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`; a missing or broken one raises BadInput."""
    path = folder / PLAN_FILE
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise BadInput(f"{path} is no readable pruning plan: {error}") from error
