"""A search in a sweep: the values that its variants may take, and what the best of them are judged by."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from resprout.configs.section import Section

MOST_TRIALS = 1000
ALIASES = ("perplexity", "divergence", "accuracy")
"""Objectives that stand for the metric of the base config's evaluation."""
SIZES = ("params", "non_embedding_params", "bytes")


class Objective(NamedTuple):
    """A metric of the last model, by its own name or an alias, and whether less of it is better."""

    name: str
    minimize: bool


class Range(Section):
    """Numbers between two ends, both included; whole ones where both ends and the step are whole."""

    low: int | float
    """Least value."""
    high: int | float
    """Greatest value."""
    step: Annotated[float, Field(gt=0)] | Annotated[int, Field(gt=0)] | None = None
    """Distance between two values that may be drawn; not with log."""
    log: bool = False
    """Draw by the logarithm, so that 1 to 2 counts as much as 10 to 20."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        if self.log and self.step is not None:
            raise ValueError("give log or step, not both")
        return self

    @property
    def whole(self) -> bool:
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))


class OptunaConfig(Section):
    """Variants that Optuna proposes from what came of the ones before."""

    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    """Variants in all, those of earlier calls of the same search included."""
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)] = (
        "params min",
        "perplexity min",
    )
    """Metrics of a variant's last model to optimize, each with min or max: params, non_embedding_params,
    bytes, perplexity, divergence, accuracy, or the name of any other metric of the evaluation."""
    over: Annotated[dict[str, Range | Annotated[tuple[Any, ...], Field(min_length=2)]], Field(min_length=1)]
    """Dotted key: a list of values, or {low, high} with step or log."""
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    """Optuna's sampler: tree-structured Parzen estimators, the genetic NSGA-II, or at random."""
    seed: int = 17
    """Seed of the sampler."""
    stop_dominated: bool = True
    """Whether a variant ends after `evaluate pruned` where another's pruned model is no worse by any
    objective and better by one."""

    @field_validator("objectives")
    @classmethod
    def _directions(cls, objectives: tuple[str, ...]) -> tuple[str, ...]:
        for one in objectives:
            name, _, direction = one.partition(" ")
            if direction not in ("min", "max"):
                raise ValueError(f"'{one}' is no objective; give a metric and min or max, as 'params min'")
            if name.endswith("_tokens_per_s"):
                raise ValueError(
                    f"'{one}' cannot be searched by: speeds are measured together after the last variant; "
                    "give params or bytes"
                )
        if len({one.partition(" ")[0] for one in objectives}) < len(objectives):
            raise ValueError("an objective is given twice")
        return objectives

    @property
    def judged_by(self) -> list[Objective]:
        """The objectives, taken apart."""
        return [Objective(one.partition(" ")[0], one.endswith(" min")) for one in self.objectives]


class SearchConfig(Section):
    """Who proposes the variants."""

    optuna: OptunaConfig
    """Optuna, with its storage in <home>/searches."""
