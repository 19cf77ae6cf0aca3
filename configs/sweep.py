"""A sweep: one run config in many variants; its schema, and what `resprout sweep --json` prints."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from resprout.configs.errors import BadInput, ResproutError
from resprout.configs.load import Loaded, explain, load, read_yaml
from resprout.configs.result import Plain, RunResult
from resprout.configs.schema import MeasureConfig
from resprout.configs.search import Range, SearchConfig
from resprout.configs.section import Name, Section

MOST_VARIANTS = 1000
DENSE = "dense"
OWN = ("name", "infra")
"""Keys that no variant may set: the sweep names its runs, and all of them share one place."""

Values = dict[str, Any]


class SweepConfig(Section):
    """Variants of one run config."""

    name: Name
    """Name of the sweep."""
    base: str
    """Run config that all variants begin with, relative to the sweep's own folder."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] | None = None
    """Dotted key: values; every combination is a variant, the last key turning fastest."""
    variants: Annotated[tuple[Values, ...], Field(min_length=1)] | None = Field(default=None, alias="list")
    """Or each variant's {dotted key: value}."""
    search: SearchConfig | None = None
    """Or a search, which proposes variants by what came of the ones before."""
    variant_name: str = "{base}-{index}"
    """Name of a variant; {base} is the base config's, {index} counts from 1."""
    register_variants: bool = Field(default=False, alias="register")
    """Whether each variant registers its model as the base says; else none does, and no alias moves."""

    @field_validator("variants")
    @classmethod
    def _say_something(cls, variants: tuple[Values, ...] | None) -> tuple[Values, ...] | None:
        shown = [json.dumps(one, sort_keys=True) for one in variants or ()]
        if len(set(shown)) < len(shown):
            raise ValueError("two variants are the same; leave one out")
        return variants

    @model_validator(mode="after")
    def _one_form(self) -> SweepConfig:
        if sum(one is not None for one in (self.grid, self.variants, self.search)) != 1:
            raise ValueError("give exactly one of grid, list and search")
        if self.grid == {}:
            raise ValueError("the grid is empty; name at least one dotted key with its values")
        for key in {key for one in (*self.settings(), self.over) for key in one}:
            if key.split(".")[0] in OWN:
                raise ValueError(
                    f"{key} cannot differ between variants; set it in the base, or for all of them on the "
                    "command line"
                )
        return self

    @property
    def over(self) -> Values:
        """The keys of a search, each with the values that it may take."""
        return dict(self.search.optuna.over) if self.search is not None else {}

    def settings(self) -> list[Values]:
        """Settings of each variant, in order; none of a search, which are not known before."""
        if self.search is not None:
            return []
        if self.variants is not None:
            return list(self.variants)
        grid = self.grid or {}
        count = 1
        for values in grid.values():
            count *= len(values)
        if count > MOST_VARIANTS:
            raise ValueError(f"the grid has {count} variants; at most {MOST_VARIANTS} are allowed")
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclass(frozen=True)
class Variant:
    """One run of a sweep: its name, what it sets, and its checked config, which measures nothing."""

    name: str
    settings: Values
    overrides: list[str]
    loaded: Loaded
    measure: MeasureConfig | None = None
    """How its last model is measured: by the sweep, with those of all variants."""


class VariantResult(Plain):
    """Outcome of a variant."""

    name: str
    settings: dict[str, Any]
    left_out: bool = False
    """It does not fit the model and did not run; the result's message says why."""
    result: RunResult


class SweepResult(Plain):
    """Outcome of a sweep: failed where a variant failed, else gate_not_passed where a gate was not passed.

    Variants that were left out, since they do not fit the model, count for neither.
    """

    status: Literal["done", "gate_not_passed", "failed"]
    exit_code: int
    message: str = ""
    """Reason why speeds could not be measured, which makes the sweep fail; else empty."""
    name: str
    mlflow_run_id: str | None = None
    """Run of the sweep, in which those of the variants are nested."""
    variants: list[VariantResult]
    front: list[str] | None = None
    """Names of the variants of a search that no other dominates; null where nothing was searched."""
    page: str | None = None
    """Path of the HTML page that compares the variants."""
    seconds: float = 0.0


def load_sweep(path: Path, overrides: list[str]) -> tuple[SweepConfig, list[Variant]]:
    """The sweep in `path` with every variant loaded; `overrides` are set in all of them before their own.

    Of a search it is one variant, number 0, which is the base as it is: the others are not known before.

    Raises:
        BadInput: naming each variant that cannot be used, and why.
    """
    path = path.expanduser()
    try:
        sweep = SweepConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadInput(explain(error, str(path), root=SweepConfig)) from None
    found, faults = list[Variant](), list[str]()
    proposed = Proposals(path, sweep, overrides)
    for index, settings in enumerate(sweep.settings(), 1):
        try:
            found.append(proposed.variant(index, settings))
        except NotAVariant as error:
            faults.append(str(error))
    if sweep.search is not None:
        found = [proposed.variant(0, {})]
        faults = proposed.faults_of_ends()
    if faults:
        raise BadInput("; ".join(faults))
    if len({one.name for one in found}) < len(found):
        raise BadInput(f"{path}: variant_name gives two variants one name; put {{index}} into it")
    return sweep, found


class NotAVariant(BadInput):
    """Settings that the base config does not take."""


class Proposals:
    """Variants of the sweep in `path`, loaded one by one."""

    def __init__(self, path: Path, sweep: SweepConfig, overrides: list[str]) -> None:
        self.path, self.sweep, self.overrides = path, sweep, overrides
        self.base = path.parent / Path(sweep.base).expanduser()
        self.base_name = load(self.base, overrides).config.name

    def variant(self, index: int, settings: Values) -> Variant:
        """Number `index` with its settings; NotAVariant where the base does not take them."""
        name = self._name(index)
        own = [f"name={name}", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
        if not self.sweep.register_variants:
            own.append("register=null")
        try:
            loaded = load(self.base, [*self.overrides, *own])
            if (measure := loaded.config.measure) is not None:
                # Speeds compare only where they are measured together.
                own.append("measure=null")
                loaded = load(self.base, [*self.overrides, *own])
        except ResproutError as error:
            raise NotAVariant(f"variant {index} ({', '.join(own[1:])}): {error}") from error
        return Variant(name, settings, [*self.overrides, *own], loaded, measure)

    def stand_in(self, index: int, settings: Values) -> Variant:
        """The variant with the base's config in place of its own, which the base does not take."""
        return Variant(self._name(index), settings, self.overrides, load(self.base, self.overrides))

    def faults_of_ends(self) -> list[str]:
        """A sentence for each value of a search, of ranges both ends, that the base alone does not take."""
        faults = []
        for key, values in self.sweep.over.items():
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                try:
                    load(self.base, [*self.overrides, f"{key}={json.dumps(value)}"])
                except ResproutError as error:
                    faults.append(f"search over {key}: {error}")
        return list(dict.fromkeys(faults))

    def _name(self, index: int) -> str:
        try:
            name = self.sweep.variant_name.format(base=self.base_name, index=index)
        except (KeyError, IndexError, ValueError):
            raise BadInput(
                f"{self.path}: variant_name is '{self.sweep.variant_name}'; it may hold {{base}} and "
                "{index}"
            ) from None
        if name == DENSE:
            raise BadInput(
                f"{self.path}: a variant is called {DENSE}, as the model is that all begin with; "
                "give variant_name another form"
            )
        return name
