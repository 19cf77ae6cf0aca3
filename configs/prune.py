"""The section of pruning; what it leaves out is the preset's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from resprout.configs.presets import Layout, Preset, load_preset, preset_names
from resprout.configs.section import Section
from resprout.configs.sources import TextSource
from resprout.configs.stages import DEPTH, Unit
from resprout.configs.target import TargetConfig

LEFT_OUT: Any = None
"""Stands for what the preset gives until it is validated."""


def _without_default(schema: dict[str, Any]) -> None:
    """The default depends on the method."""
    del schema["default"]


def _preset(info: ValidationInfo) -> Preset:
    """The section's preset; any where its name is at fault, which is reported."""
    return load_preset(info.data.get("method", preset_names()[0]))


class PruneConfig(Section):
    """Score, allocate, plan, apply, repair."""

    method: str = "recommended"
    """A preset of configs/methods: it names criterion, allocator and repair. Left out: `recommended`."""
    criterion: str | None = None
    """Overrides the preset's criterion."""
    allocator: str | None = None
    """Overrides the preset's allocator."""
    repair: str | None = None
    """Overrides the preset's repair of what the removed channels contributed."""
    units: tuple[Unit, ...] = Field(default=LEFT_OUT, json_schema_extra=_without_default)
    """What is removed: ffn (channels), kv_groups (with their query heads), heads (query heads inside each
    group), experts, hidden (channels of the residual stream, in the whole model); or layers alone, or
    sublayers (attention and FFN, each by itself) alone. Left out: what the method's paper prunes."""
    target: TargetConfig
    """Size to reach."""
    round_to: Annotated[int, Field(ge=1)] = 128
    """FFN widths and the hidden size are multiples of this; 128 suits GEMM kernels, 256 K-quants."""
    layout: Layout = Field(default=LEFT_OUT, json_schema_extra=_without_default)
    """uniform: one width for all layers, which stock classes load; per_layer: a width for each layer. Left
    out: the method's own (`resprout methods`)."""
    spared_front: int | float | None = None
    """Layers at the front whose widths stay, whatever the allocator: a number, or a share of the depth below
    1, rounded down. Left out: the method's own."""
    spared_back: int | float | None = None
    """The same at the back; a share is rounded up."""
    min_kept_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of its units of each kind that every layer keeps, whatever the allocator."""
    criterion_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The criterion's own settings (`resprout methods` lists them), put over the preset's."""
    allocator_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The allocator's own settings, likewise."""
    repair_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The repair's own settings, likewise."""
    general: tuple[TextSource, ...] = ()
    """Open-domain text beside calibrate.text, for criteria that weigh a domain against it (domain_dual)."""
    schedule: str = "one_shot"
    """When units go: one_shot, or in rounds with training between them (`resprout methods`)."""
    schedule_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The schedule's own settings, likewise."""
    memory: Literal["whole", "stream"] = "whole"
    """whole: the model in memory; stream: one layer at a time, for models that do not fit. The same bytes."""
    ridge: Annotated[float, Field(ge=0.0)] = 0.01
    """least_squares: damping as a share of the mean diagonal of the Gram matrix."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        load_preset(method)
        return method

    @field_validator("units", mode="before")
    @classmethod
    def _own_units(cls, given: Any, info: ValidationInfo) -> Any:
        return _preset(info).units if given is None else given

    @field_validator("layout", mode="before")
    @classmethod
    def _own_layout(cls, given: Any, info: ValidationInfo) -> Any:
        preset = _preset(info)
        return preset.own_layout(info.data.get("units", preset.units)) if given is None else given

    @field_validator("spared_front", "spared_back", mode="before")
    @classmethod
    def _number_or_share(cls, given: Any, info: ValidationInfo) -> Any:
        number = isinstance(given, int) and not isinstance(given, bool) and given >= 0
        if given is None or number or (isinstance(given, float) and 0 <= given < 1):
            return given
        raise ValueError(
            f"{info.field_name} is {given!r}; give a number of layers, or a share below 1 of the depth"
        )

    @field_validator("units")
    @classmethod
    def _some_units(cls, units: tuple[str, ...]) -> tuple[str, ...]:
        if not units or len(set(units)) != len(units):
            raise ValueError(f"units is {list(units)}; name some of {', '.join(get_args(Unit))}, each once")
        if len(units) > 1 and (depth := [unit for unit in units if unit in DEPTH]):
            raise ValueError(
                f"units names {' and '.join(units)}, but {depth[0]} are pruned alone; give units: "
                f"[{depth[0]}] and prune widths in another run"
            )
        return units

    @model_validator(mode="after")
    def _sublayers_need_a_layout(self) -> PruneConfig:
        if "sublayers" in self.units and self.layout == "uniform":
            raise ValueError(
                "units is [sublayers], but layout is uniform, and stock classes load no layer that lacks "
                "attention or FFN; give layout: per_layer, or units: [layers]"
            )
        return self


class PruneRound(PruneConfig):
    """One round of a pruning schedule before the last."""

    done: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """How far it goes from the dense size to the target."""
