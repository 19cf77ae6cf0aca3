"""Terminal output of a sweep: a line as each variant ends, and one table of all."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from resprout.configs.result import RunResult
from resprout.configs.sweep import SweepResult, Variant, VariantResult
from resprout.tasks.evaluate.stage import kl_metric, perplexity_metric
from resprout.tasks.measure.stage import run_names
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.report.table import speed_cell

NONE = "-"


def ended_line(ended: VariantResult) -> str:
    """How a variant ended."""
    result = ended.result
    said = f": {result.message}" if result.message else ""
    cached = sum(stage.cached for stage in result.stages)
    return (
        f"{ended.name}: {result.status} after {result.seconds:.1f} s, {cached} of {len(result.stages)} "
        f"stages from the cache{said}"
    )


def table(variants: Sequence[Variant], result: SweepResult) -> Table:
    """A row for each variant: what it set, and its last model's size, scores, speed and verdict."""
    settings = dict.fromkeys(key for variant in variants for key in variant.settings)
    keys = [key for key in settings if key != "prune.method"]
    found = Table("variant", "method", *keys, box=None, pad_edge=False)
    for heading in ("parameters", "perplexity", "KL", "accuracy", "decode tokens/s", "gate", "seconds"):
        found.add_column(heading, justify="right")
    found.add_column("status")
    for variant, ended in zip(variants, result.variants, strict=True):
        own = [json.dumps(variant.settings[key]) if key in variant.settings else NONE for key in keys]
        status = "does not fit" if ended.left_out else ended.result.status
        # The name in force, which the settings and the base decide together.
        method = resolve(variant.loaded.config.prune).method
        found.add_row(variant.name, method, *own, *_cells(variant, ended.result), status)
    return found


def _cells(variant: Variant, result: RunResult) -> list[str]:
    last = next(reversed(result.made_models().values()), None)
    metrics = last.metrics if last is not None else {}
    text = variant.loaded.config.evaluate.perplexity
    speed = f"{run_names(variant.measure)[1]}_tokens_per_s" if variant.measure is not None else ""
    checks = result.gate.checks if result.gate is not None else []
    gate = (
        NONE
        if result.gate is None or not checks
        else "passed"
        if result.gate.passed
        else ", ".join(check.name for check in checks if not check.passed)
    )
    return [
        f"{last.params:,}" if last is not None else NONE,
        _number(metrics.get(perplexity_metric(text)), ".2f"),
        _number(metrics.get(kl_metric(text)), ".4f"),
        _number(metrics.get("zero_shot_mean_acc"), ".3f"),
        speed_cell(metrics, speed),
        gate,
        f"{result.seconds:.1f}",
    ]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
