"""`resprout sweep`: one run config in many variants."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from resprout.configs.result import RunResult
    from resprout.configs.sweep import SweepResult, Variant, VariantResult
    from resprout.flows.sweep_session import SweepSession

NONE = "-"


def sweep(
    config: Annotated[Path, typer.Argument(help="Sweep (YAML): name, base, and grid or list.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value for all variants, e.g. infra.workers=2")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of stdout: the result as JSON.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show what of the variants is found, and what the rest takes."),
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(min=0.0, help="Price of an hour, for --dry-run; default: infra.price_per_hour."),
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Refuse the sweep where a variant does not fit the model.")
    ] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
) -> None:
    """Run every variant of a sweep; stages that variants share run once, and one that fails ends no other.

    The variants are a grid, a list, or what a search by Optuna proposes (section search). A variant that does
    not fit the model is left out with its reason, and the others run (--strict: none).
    The same command again goes on from there: finished stages and variants are found in the cache.

    \b
    Examples:
      resprout sweep configs/sweep_quickstart.yaml
      resprout sweep configs/sweep_quickstart.yaml --dry-run --price 1.20
      resprout sweep configs/sweep_quickstart.yaml infra.task_runner=dask infra.workers=2 --json
    """
    from resprout.configs.sweep import load_sweep

    loaded, variants = load_sweep(config, overrides or [])
    from resprout.infra.environment import prepare

    prepare(variants[0].loaded.config.infra, variants[0].loaded.home, debug)
    if not debug:
        # Deprecations inside the libraries underneath are not the user's to fix.
        warnings.simplefilter("ignore")
    from resprout.flows.sweep_session import prepared

    session = prepared(loaded, variants, strict)
    for name, reason in session.unfit.items():
        typer.echo(f"{name}: left out, {reason}", err=True)
    if dry_run:
        _forecast(session, price, as_json)
        return
    from resprout.flows.session import end_on_signals
    from resprout.infra.prefect.home_server import home_server

    end_on_signals(session.interrupt)
    with home_server(variants[0].loaded.config.infra):
        result = _sweep(config, overrides or [], session)
    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
        sys.stdout.flush()
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _sweep(config: Path, overrides: list[str], session: SweepSession) -> SweepResult:
    from rich.console import Console

    from resprout.flows.cli.display import LineDisplay

    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=240)
    session.display = lambda name: LineDisplay(console, name)
    session.ended = lambda result: console.print(ended_line(result), highlight=False, soft_wrap=True)
    from resprout.flows.sweep import sweep_here

    result = sweep_here(config, overrides, session)
    console.print()
    console.print(table(session.variants, result), highlight=False)
    if result.front is not None:
        best = ", ".join(result.front) or "none"
        console.print(f"front, of variants that no other dominates: {best}", highlight=False, soft_wrap=True)
    if result.page is not None:
        console.print(f"page: {result.page}", highlight=False, soft_wrap=True, markup=False)
    if result.message:
        console.print(f"speeds: {result.message}", highlight=False, soft_wrap=True, markup=False)
    return result


def _forecast(session: SweepSession, price: float | None, as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from resprout.flows.cli.forecast import duration, page, sentence, size
    from resprout.flows.sweep import forecasts

    found = forecasts(session, price)
    if as_json:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for heading in ("found", "time", "memory", "disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("would run", overflow="fold")
    for one in found["variants"]:
        changes = " ".join(f"{key}={json.dumps(value)}" for key, value in one["settings"].items())
        cached = sum(stage["cached"] for stage in one["stages"])
        own = [stage["name"] for stage in one["stages"] if not stage["cached"]]
        own = [name for name in own if name not in one["shared"]]
        shared = f"with another variant: {', '.join(one['shared'])}" if one["shared"] else ""
        takes = (duration(one["seconds"]), size(one["memory_bytes"]), size(one["disk_bytes"]))
        runs = "; ".join(filter(None, (", ".join(own), shared))) or "nothing"
        table.add_row(
            escape(f"{one['name']}\n{changes}"), f"{cached} of {len(one['stages'])}", *takes, escape(runs)
        )
    shown = page()
    shown.print(sentence(found, f"{len(found['variants'])} variants: "), markup=False)
    shown.print()
    shown.print(table)


def ended_line(ended: VariantResult) -> str:
    """How a variant ended."""
    result = ended.result
    detail = f": {result.message}" if result.message else ""
    cached = sum(stage.cached for stage in result.stages)
    return (
        f"{ended.name}: {result.status} after {result.seconds:.1f} s, {cached} of {len(result.stages)} "
        f"stages from the cache{detail}"
    )


def table(variants: Sequence[Variant], result: SweepResult) -> Table:
    """A row for each variant: what it set, and its last model's size, scores, speed and verdict."""
    from rich.table import Table

    from resprout.tasks.prune.compatibility import resolve

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
    from resprout.tasks.evaluate.stage import kl_metric, perplexity_metric
    from resprout.tasks.measure.stage import run_names
    from resprout.tasks.report.table import ratio_cell

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
        ratio_cell(metrics, speed),
        gate,
        f"{result.seconds:.1f}",
    ]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)
