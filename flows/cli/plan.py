"""`resprout plan`: what a run would do, before any weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def plan(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. prune.target.params_ratio=0.8")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="Price of an hour here; default: infra.price_per_hour.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Show which stages would run and why, what is found, and the time, memory, disk and money that it takes.

    Why: the parts of a stage's cache key that differ from the nearest record. Times and memory are those of
    earlier runs on this machine, scaled to this model. Below are the widths that the target implies; those
    that depend on scores (layout: per_layer) are known once the plan stage has run, in its plan.json. Of a
    pruning schedule also its rounds, the average size over training, and the loss that this predicts.

    \b
    Examples:
      resprout plan configs/quickstart.yaml
      resprout plan configs/quickstart.yaml prune.target.params_ratio=0.8 --price 1.20
      resprout plan configs/quickstart.yaml --json
    """
    from resprout.configs.load import load
    from resprout.flows.check import check

    loaded = load(config, overrides or ())
    check(loaded)
    from resprout.flows.dry_run import forecast

    found = forecast(loaded, price)
    if as_json:
        typer.echo(json.dumps(found, sort_keys=True))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from resprout.flows.cli.forecast import page, sentence

    shown = page()
    for line in (*_sizes(found), sentence(found)):
        shown.print(line, markup=False)
    shown.print()
    shown.print(_stages(found["stages"]))
    shown.print()
    for line in _lines(found):
        shown.print(line, markup=False)
    if "plan" in found:
        # An address is copied, so it is never folded.
        shown.print(f"plan: {found['plan']['uri']}/plan.json", markup=False, soft_wrap=True)


def _sizes(found: dict[str, Any]) -> list[str]:
    """The answer of a plan: what the model is and what becomes of it; nothing where it is elsewhere."""
    dense, pruned = found.get("dense"), found.get("pruned")
    if dense is None:
        return []
    before = f"{dense['params']:,} parameters, {dense['bytes'] / 1e6:,.1f} MB of weights"
    if pruned is None:
        return [f"{before} -> at most {found['requested_params']:,} parameters"]
    share = pruned["params"] / dense["params"]
    lines = [f"{before} -> {pruned['params']:,}, {pruned['bytes'] / 1e6:,.1f} MB (x{share:.2f})"]
    if (file := found.get("file")) is not None:
        came, ships = file["source_bytes"], file["bytes"]
        larger = ", larger than what came in" if ships > came else ""
        lines.append(
            f"file: {came / 1e6:,.1f} MB ({file['source_format']}) -> about {ships / 1e6:,.1f} MB "
            f"({file['format']}, x{ships / came:.2f}){larger}"
        )
    return lines


def _stages(stages: list[dict[str, Any]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from resprout.flows.cli.forecast import duration, size

    table = Table("stage", "", box=None, pad_edge=False)
    if not all(one["cached"] for one in stages):
        for heading in ("time", "memory", "disk"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("why", overflow="fold")
    for one in stages:
        if one["cached"]:
            table.add_row(one["name"], "found")
            continue
        takes = (duration(one["seconds"]), size(one["memory_bytes"]), size(one["disk_bytes"]))
        table.add_row(one["name"], "would run", *takes, escape("\n".join(one["reasons"])))
    return table


def _lines(found: dict[str, Any]) -> list[str]:
    method = found["method"]
    lines = [
        f"{found['name']} on {found['device']}: {method['name']}: criterion {method['criterion']}, allocator "
        f"{method['allocator']}, repair {method['repair']}, units {', '.join(method['units'])}, layout "
        f"{method['layout']}"
    ]
    for name in ("dense", "pruned"):
        shape = found.get(name)
        if shape is not None:
            lines.append(
                f"{name}: {shape['params']:,} parameters ({shape['non_embedding_params']:,} without "
                f"embeddings), {shape['bytes'] / 1e6:,.1f} MB, {shape['layers']} layers, FFN "
                f"{_span(shape['ffn'])}, KV groups {_span(shape['kv_groups'])}"
            )
    if "requested_params" in found:
        # A target in time says nothing of parameters.
        if found["requested_params"] < found["dense"]["params"]:
            lines.append(f"target: at most {found['requested_params']:,} parameters")
        if found["pruned"] is None:
            lines.append("pruned: widths depend on scores; the plan stage finds them")
        lines += [*_placed(found["placement"]), *_journey(found)]
        lines.extend(f"warning: {warning}" for warning in found["warnings"])
    else:
        lines.append("shapes: the source is not on this machine; they are known once it is acquired")
    if found["own_classes"]:
        lines.append(f"export: {found['own_classes']}")
    lines.extend(
        f"warning: {remark}" for remark in (*found["trusted_code"], *found["licences"], *found["slow"])
    )
    return lines


def _placed(placement: dict[str, Any] | None) -> list[str]:
    """Where the layers of a model that may be larger than one device lie."""
    if placement is None:
        return []
    names = {"cpu": "in memory", "disk": "on disk, read again for each batch"}
    lie = "; ".join(
        f"{size / 1e9:,.3f} GB ({placement['layers'][one]} layers) {names.get(one, f'on GPU {one}')}"
        for one, size in placement["held_bytes"].items()
    )
    refused = (
        f"warning: {one} needs all weights in memory, so a run is refused" for one in placement["refused"]
    )
    return [f"placement of the dense model beside another, by what is free now: {lie}", *refused]


def _journey(found: dict[str, Any]) -> list[str]:
    """The rounds of a schedule and what its average size predicts; nothing of one_shot."""
    rounds, journey = found["rounds"], found["journey"]
    if len(rounds) == 1:
        return []
    lines = [f"schedule: {found['schedule']}"]
    for number, one in enumerate(rounds, 1):
        how = "cut" if number == len(rounds) else "shrinks units" if one["shrinks"] else "masked"
        when = f" after {one['train']:.0%} of training" if journey else ""
        most = "" if one["exact"] else "at most "
        lines.append(f"  round {number}{when}: {how}, {most}{one['params']:,} parameters stay")
    if journey:
        lines.append(
            f"average over training: {journey['average_params']:,.0f} parameters (one shot: "
            f"{journey['one_shot_params']:,})"
        )
        if None not in (journey["loss"], journey["one_shot_loss"]):
            lines.append(
                f"law of average parameters for {journey['tokens']:,.0f} tokens: loss {journey['loss']:.4f} "
                f"(one shot: {journey['one_shot_loss']:.4f}); it is fitted to pre-training from scratch, so "
                "it compares schedules and predicts no perplexity"
            )
    return lines


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
