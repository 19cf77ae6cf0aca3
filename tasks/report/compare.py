"""The page that shows several runs side by side: the Pareto front, a table, and settings that differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resprout.configs.result import GateResult
from resprout.tasks.report.charts import Chart, Point, scatter
from resprout.tasks.report.figures import INTERVAL, PLACED, trade_axes, trade_point
from resprout.tasks.report.pages import render
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.shipped import AS_LARGE
from resprout.tasks.report.table import accuracy_cell, perplexity_of, ratio_cell, speeds_of
from resprout.tasks.report.verdict import RULE, verdict

NONE = "-"


class Comparison(NamedTuple):
    """A page, and the charts on it."""

    text: str
    charts: list[Chart]


def comparison_page(
    title: str, over: str, runs: Sequence[PastRun], left_out: Mapping[str, str] | None = None
) -> Comparison:
    """The page called `title`, with a line `over` it; `left_out` are runs without scores, each with why.

    A run has the verdict of its report, else one without a look at fewer bits. Runs are numbered from 1 in
    their order. Those whose dense model has another perplexity than the first run's were judged on another
    model or text: they are in the table, not in the pictures.
    """
    quality = perplexity_of(runs[0].dense) if runs else ""
    alike = [one.dense.get(quality) == runs[0].dense[quality] and quality in one.last for one in runs]
    numbered = list(enumerate(runs, 1))
    comparable = [one for one, fits in zip(numbered, alike, strict=True) if fits]
    charts = [*pareto(comparable)] if comparable else []
    text = render(
        "compare.html",
        {
            "title": title,
            "over": over,
            "charts": charts,
            "columns": ["size, MB", "perplexity", "KL to dense", "mean accuracy", "speed, tokens/s"],
            "runs": [
                {
                    "number": number,
                    "run": run,
                    "cells": cells(run),
                    "alike": fits,
                    "verdict": run.verdict or verdict(run.models, _gate(run), larger=_is_larger(run)).result,
                }
                for (number, run), fits in zip(numbered, alike, strict=True)
            ],
            "dense": cells(PastRun(name="dense", models={"dense": runs[0].dense})) if runs else [],
            "differences": differences([run.config for run in runs]),
            "left_out": dict(left_out or {}),
            "rule": RULE,
        },
    )
    return Comparison(text, charts)


def pareto(runs: Sequence[tuple[int, PastRun]]) -> Iterator[Chart]:
    """Quality of the numbered runs' last models against size and speed, with the front that none beats."""
    dense = runs[0][1].dense
    for name, kind, label, scale in trade_axes(dense):
        found = [
            (number, point)
            for number, run in runs
            if (point := trade_point(str(number), "recovered", run.last, dense, name, scale)) is not None
        ]
        before = trade_point("dense", "dense", dense, dense, name, scale)
        if not found or before is None:
            continue
        sign = 1 if kind == "size" else -1
        best = front([(sign * point.x, point.y) for point in [before, *(point for _, point in found)]])
        on_front = {(sign * x, y) for x, y in best}
        points = [before]
        for number, point in found:
            is_best = (point.x, point.y) in on_front
            name_, colour = ("on the front", "recovered") if is_best else ("another is better", "earlier")
            points.append(Point(name_, colour, point.x, point.y, point.x_span, point.y_span, str(number)))
        better = "further left is smaller" if kind == "size" else "further right is faster"
        says = (
            f"Lower is better, {better}; numbers are those of the table. On the front no other run is better "
            f"at both, as measured. {INTERVAL}{PLACED if kind == 'speed' else ''}"
        )
        line = sorted((sign * x, y) for x, y in best)
        yield scatter(
            kind, f"Quality against {kind}", says, points, label, "perplexity on held-out text", line
        )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points for which no other is as low in both and lower in one, by the first value."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def cells(run: PastRun) -> list[str]:
    """Size, perplexity, KL, accuracy and speed of a run's last model, each beside the dense one's."""
    metrics, quality = run.last, perplexity_of(run.last)
    smaller = metrics["bytes"] / run.dense["bytes"]
    size = f"{metrics['bytes'] / 1e6:,.1f}" + ("" if metrics is run.dense else f" (x{smaller:.2f})")
    divergence = next((name for name in sorted(metrics) if "_kl_to_dense" in name), "")
    speed = next(iter(speeds_of(metrics)), "")
    return [
        size,
        ratio_cell(metrics, quality, ",.2f"),
        f"{metrics[divergence]:.4f}" if divergence else NONE,
        accuracy_cell(metrics, "zero_shot_mean_acc"),
        ratio_cell(metrics, speed),
    ]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings in which configs differ, by dotted name, each with its value in every config."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    rows = [(name, [_shown(config, name) for config in configs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _shown(config: Mapping[str, Any], name: str) -> str:
    if name not in config:
        return NONE
    value = config[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_larger(run: PastRun) -> bool:
    return run.last["bytes"] > AS_LARGE * run.dense["bytes"]


def _gate(run: PastRun) -> GateResult | None:
    known = run.gate in ("passed", "failed")
    return GateResult(passed=run.gate == "passed", checks=[]) if known else None
