"""The pictures of a run's report, each drawn where the run holds what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from resprout.tasks.measure.ratio import ratio_in
from resprout.tasks.report.charts import (
    COLOURS,
    Chart,
    Line,
    Point,
    Span,
    Value,
    dots,
    lines,
    scatter,
    widths,
)
from resprout.tasks.report.table import SPEED, Metrics, perplexity_of, speeds_of

INTERVAL = "Lines through a point are its interval of 95 %, relative to the dense model."


def trade_offs(models: Mapping[str, Metrics]) -> Iterator[Chart]:
    """Quality against size, and against the speed of decoding where it was measured."""
    dense = next(iter(models.values()))
    quality = perplexity_of(dense)
    measured = speeds_of(dense)
    axes = [("bytes", "size", "weights in MB", 1e-6)]
    axes += [(name, "speed", f"{name.removesuffix(SPEED)}: tokens a second", 1.0) for name in measured[:1]]
    for name, kind, label, scale in axes:
        points = [
            Point(
                model,
                colour_of(model),
                scale * metrics[name],
                metrics[quality],
                _span(dense, metrics, name, scale),
                _span(dense, metrics, quality),
            )
            for model, metrics in models.items()
            if name in metrics and quality in metrics
        ]
        better = "further left is smaller" if kind == "size" else "further right is faster"
        says = f"Lower is better, {better}. {INTERVAL}"
        yield scatter(
            f"{kind}", f"Quality against {kind}", says, points, label, "perplexity on held-out text"
        )


def accuracies(models: Mapping[str, Metrics]) -> Iterator[Chart]:
    """Accuracies of all models with their standard errors."""
    dense = next(iter(models.values()))
    names = [name for name in sorted(dense) if f"{name}_stderr" in dense]
    if names:
        rows = {
            name: [
                Value(model, metrics[name], _around(metrics[name], metrics[f"{name}_stderr"]))
                for model, metrics in models.items()
                if f"{name}_stderr" in metrics
            ]
            for name in names
        }
        says = (
            "Share of questions answered right. Lines are one standard error to each side; differences "
            "within them say nothing."
        )
        yield dots("accuracy", "Accuracy by task", says, rows, "share of right answers")


def layer_widths(rows: Sequence[Mapping[str, tuple[int, int]]]) -> Iterator[Chart]:
    """Units of each layer before and after, of the kinds that lost some."""
    kinds = [kind for kind in rows[0] if any(row[kind][0] != row[kind][1] for row in rows)]
    if kinds:
        panels = {kind: [row[kind] for row in rows] for kind in kinds}
        says = f"Units that each layer has left ({', '.join(kinds)}), and those that were removed from it."
        yield widths("widths", "Width by layer", says, panels)


def training_loss(history: Sequence[Mapping[str, float]]) -> Iterator[Chart]:
    """Training loss against the tokens that were trained on so far."""
    points, seen = list[Span](), 0.0
    for entry in history:
        seen += entry["tokens"]
        points.append((seen, entry["loss"]))
    if len(points) > 1:
        says = f"Mean loss in nats a response token at each of {len(points)} steps of recovery."
        loss = Line("training loss", "recovered", points)
        yield lines("loss", "Training loss", says, [loss], "tokens trained on", "loss, nats a token")


def colour_of(model: str) -> str:
    """Name of the colour in which a model is drawn."""
    return model if model in COLOURS else "accent"


def _span(dense: Metrics, metrics: Metrics, name: str, scale: float = 1.0) -> Span | None:
    ratio = ratio_in(metrics, name)
    return None if ratio is None else (scale * dense[name] * ratio.low, scale * dense[name] * ratio.high)


def _around(value: float, error: float) -> Span:
    return value - error, value + error
