"""The result table, dense, pruned and recovered side by side, as text for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Metrics = Mapping[str, float]
NONE = "-"


@dataclass(frozen=True)
class Row:
    """A label and one cell for each model."""

    label: str
    cells: tuple[str, ...]


def comparison(models: Mapping[str, Metrics], source_bytes: int | None, source_format: str) -> list[Row]:
    """Rows of the table; `models`: name -> metrics of evaluate and measure together, dense first."""
    names = list(models)
    dense = models[names[0]]
    rows = [
        _row("parameters", models, "params", lambda value: f"{value:,.0f}", dense),
        _row("without embeddings", models, "non_embedding_params", lambda value: f"{value:,.0f}", dense),
        _row("MB of weights (export dtype)", models, "bytes", lambda value: f"{value / 1e6:,.1f}", dense),
    ]
    if source_bytes:
        shown = f"{source_bytes / 1e6:,.1f} ({source_format})"
        rows.append(Row("MB of the source file", (shown, *[NONE] * (len(names) - 1))))
    every = sorted({name for metrics in models.values() for name in metrics})
    for name in every:
        if "_ppl_" in name:
            rows.append(_row(f"perplexity ({name})", models, name, lambda value: f"{value:.2f}", dense))
    for name in every:
        if "_kl_to_dense" in name:
            rows.append(_row(f"KL to dense, nats ({name})", models, name, lambda value: f"{value:.4f}"))
    for name in every:
        if name.endswith(("_acc", "_acc_norm")) and name != "zero_shot_mean_acc":
            rows.append(_accuracy(name, models))
    if "zero_shot_mean_acc" in every:
        rows.append(_row("mean accuracy", models, "zero_shot_mean_acc", lambda value: f"{value:.3f}"))
    for name in every:
        if name.endswith("_tokens_per_s"):
            label = name.removesuffix("_tokens_per_s")
            rows.append(_row(f"{label}, tokens/s", models, name, lambda value: f"{value:,.1f}", dense))
    if "peak_memory_mb" in every:
        rows.append(_row("peak memory, MB", models, "peak_memory_mb", lambda value: f"{value:,.0f}", dense))
    return rows


def _row(
    label: str,
    models: Mapping[str, Metrics],
    name: str,
    shown: Callable[[float], str],
    dense: Metrics | None = None,
) -> Row:
    cells = []
    for metrics in models.values():
        if name not in metrics:
            cells.append(NONE)
            continue
        cell = shown(metrics[name])
        if dense is not None and metrics is not dense and dense.get(name):
            cell += f" (x{metrics[name] / dense[name]:.2f})"
        cells.append(cell)
    return Row(label, tuple(cells))


def _accuracy(name: str, models: Mapping[str, Metrics]) -> Row:
    cells = []
    for metrics in models.values():
        if name not in metrics:
            cells.append(NONE)
            continue
        error = metrics.get(f"{name}_stderr")
        cells.append(f"{metrics[name]:.3f}" + (f" ± {error:.3f}" if error is not None else ""))
    return Row(name, tuple(cells))


def recovery_sentence(pruned: Metrics, recovered: Metrics) -> str:
    """Whether recovery helped, by perplexity on held-out text, in a sentence."""
    name = next(key for key in sorted(pruned) if "_ppl_" in key)
    before, after = pruned[name], recovered[name]
    change = f"{name} went from {before:.2f} to {after:.2f}"
    if after < before:
        return f"Recovery helped: {change}."
    return f"Recovery did not help: {change}. Look at the trainer before the data."
