"""Finished runs as MLflow shows them: earlier ones on a model, and those that a page compares."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from resprout.configs.result import ShippedResult, VerdictResult
from resprout.flows.stages import models
from resprout.infra.mlflow.tracking import GATE, SHIPS, Tracker
from resprout.tasks.quantize.names import DENSE, SOURCE_FILE
from resprout.tasks.report.past_run import PastRun, as_shipped
from resprout.tasks.report.table import FILE_MB, FILE_RATIO, perplexity_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST = 30
"""Earlier runs that a report shows."""


def past_run(run: Run, config: Mapping[str, Any] | None = None) -> PastRun | None:
    """A run of MLflow as plain data; None where it has no scores of a dense model and another."""
    named = [name for name in models() if f"{name}.params" in run.data.metrics]
    if len(named) < 2 or named[0] != DENSE or not any("_ppl_" in name for name in run.data.metrics):
        return None
    kept = {name: _of_model(run.data.metrics, name) for name in (DENSE, named[-1])}
    tags = run.data.tags
    return PastRun(
        name=run.info.run_name or run.info.run_id,
        made=datetime.fromtimestamp(run.info.start_time / 1000, UTC).date().isoformat(),
        method=tags.get("resprout.method", ""),
        gate=tags.get(GATE, "none"),
        models=kept,
        config=dict(config or {}),
    )


def shipped_run(run: Run, config: Mapping[str, Any], verdict: VerdictResult | None) -> PastRun | None:
    """A run of MLflow with what it shipped as its last model; None where it has no scores."""
    found, metrics, format_ = past_run(run, config), run.data.metrics, run.data.tags.get(SHIPS)
    if found is None or format_ is None or not {FILE_MB, FILE_RATIO} <= metrics.keys():
        return found
    named = (format_, SOURCE_FILE, f"{DENSE} {format_}")
    files = {name: one for name in named if (one := _of_model(metrics, name))}
    size = 1e6 * metrics[FILE_MB]
    ships = ShippedResult(
        format=format_, bytes=size, source_format="", source_bytes=size / metrics[FILE_RATIO]
    )
    return found.model_copy(update={"models": as_shipped(found.models, files, ships), "verdict": verdict})


def earlier_runs(
    tracker: Tracker, run_id: str, model: str, dense: Mapping[str, float], last: Mapping[str, float]
) -> list[PastRun]:
    """The newest finished runs on the model called `model` beside the run `run_id`, newest first.

    Runs compare where the dense model had the same perplexity in both: then text and protocol are the same.
    Of runs with the same scores one is shown, and none with those of the run's own `last` model.
    """
    quality = perplexity_of(dense)
    quoted = f'"{model}"' if "'" in model else f"'{model}'"
    own = (last["bytes"], last[quality])
    found: dict[tuple[float, ...], PastRun] = {}
    for run in sorted(tracker.concluded(f"params.model = {quoted}"), key=lambda one: -one.info.start_time):
        past = past_run(run) if run.info.run_id != run_id else None
        if past is not None and past.dense.get(quality) == dense[quality] and quality in past.last:
            found.setdefault((past.last["bytes"], past.last[quality]), past)
    return [past for scores, past in found.items() if scores != own][:MOST]


def _of_model(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in metrics.items() if key.startswith(start)}
