"""The result table, the models of a run side by side, as text for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resprout.tasks.evaluate.paired import CUT, MEAN, change_in
from resprout.tasks.measure.ratio import SUFFIXES, ratio_in
from resprout.tasks.report.shipped import Shipped

Metrics = Mapping[str, float]
NONE = "-"


BITS = "_bits_per_byte"
SPEED, DECODE, AFTER = "_tokens_per_s", "decode", "_after"


def perplexity_of(metrics: Metrics) -> str:
    """Name of the perplexity among a model's metrics."""
    return next(name for name in sorted(metrics) if "_ppl_" in name and not name.endswith(SUFFIXES))


def speeds_of(metrics: Metrics) -> list[str]:
    """Names of the speeds among a model's metrics, those of decoding behind the main prompt first."""
    found = (name for name in metrics if name.endswith(SPEED))
    return sorted(found, key=lambda name: (not name.startswith(DECODE), AFTER in name, name))


@dataclass(frozen=True)
class Row:
    """A label and one cell for each model."""

    label: str
    cells: tuple[str, ...]


def comparison(
    models: Mapping[str, Metrics],
    source_bytes: int | None,
    source_format: str,
    averaged: Sequence[str] = (),
    ships: Shipped | None = None,
) -> list[Row]:
    """Rows of the table; `models`: name -> metrics of evaluate and measure together, dense first.

    `averaged`: the accuracies whose mean is `zero_shot_mean_acc`; `ships`: the last model as a file.
    """
    names = list(models)
    dense = models[names[0]]
    rows = [
        _row("parameters", models, "params", lambda value: f"{value:,.0f}", dense),
        _row("without embeddings", models, "non_embedding_params", lambda value: f"{value:,.0f}", dense),
        _row("MB of weights (export dtype)", models, "bytes", lambda value: f"{value / 1e6:,.1f}", dense),
    ]
    if source_bytes:
        sizes = [f"{source_bytes / 1e6:,.1f} ({source_format})", *[NONE] * (len(names) - 1)]
        if ships is not None and len(names) > 1:
            sizes[-1] = f"{ships.bytes / 1e6:,.1f} ({ships.format}, x{ships.ratio:.2f})"
        rows.append(Row("MB of the file", tuple(sizes)))
    if any("zeros_share" in metrics for metrics in models.values()):
        rows.append(_row("zeros, share of parameters", models, "zeros_share", lambda value: f"{value:.3f}"))
    every = sorted({name for metrics in models.values() for name in metrics})
    for name in every:
        if "_ppl_" in name and not name.endswith(SUFFIXES):
            cells = tuple(ratio_cell(metrics, name, ",.2f") for metrics in models.values())
            rows.append(Row(f"perplexity ({name})", cells))
    for name in every:
        if BITS in name:
            rows.append(_row("bits per byte", models, name, lambda value: f"{value:.4f}"))
    for name in every:
        if "_kl_to_dense" in name:
            rows.append(_row(f"KL to dense, nats ({name})", models, name, lambda value: f"{value:.4f}"))
    for name in every:
        if f"{name}_stderr" in every:
            rows.append(_accuracy(name, models))
        elif name.endswith(CUT):
            label = f"{name.removesuffix(CUT)}, share of answers cut"
            rows.append(_row(label, models, name, lambda value: f"{value:.3f}"))
    if "zero_shot_mean_acc" in every:
        label = f"mean accuracy ({_kinds(averaged)})" if averaged else "mean accuracy"
        cells = tuple(accuracy_cell(metrics, "zero_shot_mean_acc") for metrics in models.values())
        rows.append(Row(label, cells))
    for name in speeds_of(dict.fromkeys(every, 0.0)):
        cells = tuple(ratio_cell(metrics, name) for metrics in models.values())
        rows.append(Row(f"{name.removesuffix(SPEED)}, tokens/s", cells))
    if "peak_memory_mb" in every:
        # Measured once, so no interval says whether two differ.
        rows.append(_row("peak memory, MB", models, "peak_memory_mb", lambda value: f"{value:,.0f}"))
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


def ratio_cell(metrics: Metrics, name: str, form: str = ",.1f") -> str:
    """A value, and its ratio to the dense model's with an interval, or that it does not differ from 1."""
    if name not in metrics:
        return NONE
    ratio = ratio_in(metrics, name)
    return format(metrics[name], form) + (f" ({ratio})" if ratio is not None else "")


def _accuracy(name: str, models: Mapping[str, Metrics]) -> Row:
    return Row(name, tuple(accuracy_cell(metrics, name) for metrics in models.values()))


def accuracy_cell(metrics: Metrics, name: str) -> str:
    """An accuracy with its standard error, and its change over the dense model's outside the noise."""
    if name not in metrics:
        return NONE
    error, change = metrics.get(f"{name}_stderr"), change_in(metrics, name)
    shown = f"{metrics[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")
    if change is None:
        return shown
    mean, low, high = change
    different = not low <= 0 <= high
    return f"{shown} ({f'{mean:+.3f}' if different else 'no difference'})"


def _kinds(averaged: Sequence[str]) -> str:
    """acc_norm or acc where all tasks have the same, else the metrics by name."""
    kinds = {"acc_norm" if name.endswith("_acc_norm") else "acc" for name in averaged}
    return kinds.pop() if len(kinds) == 1 else ", ".join(averaged)


def recovery_sentence(pruned: Metrics, recovered: Metrics, earlier: int = 0, steps: int = 0) -> str:
    """Whether recovery helped, by perplexity on held-out text and KL to the dense model, in a sentence.

    One more says so where `earlier` of its `steps` came before the last cut.
    """
    helped = _helped(pruned, recovered)
    if not earlier:
        return helped
    return (
        f"{helped} This is of the last {steps - earlier} of {steps} training steps: the pruned model had "
        "passed through the others between rounds of its schedule."
    )


def _helped(pruned: Metrics, recovered: Metrics) -> str:
    better: dict[str, str] = {}
    worse: dict[str, str] = {}
    for name in sorted(set(pruned) & set(recovered)):
        kind = "KL to dense" if "_kl_to_dense" in name else "perplexity" if "_ppl_" in name else None
        if kind is not None and not name.endswith(SUFFIXES):
            digits = 2 if kind == "perplexity" else 4
            before, after = round(pruned[name], digits), round(recovered[name], digits)
            change = f"{kind} ({name}) from {before:.{digits}f} to {after:.{digits}f}"
            # A change that the table does not show is none.
            (better if after < before else worse)[kind] = change
    if better and worse:
        part = f"{_listed(better)}, which is better, but {_listed(worse)}, which is not"
        return f"Recovery helped in part: {part}."
    if better:
        return f"Recovery helped: {_listed(better)}."
    return f"Recovery did not help: {_listed(worse)}. Look at the trainer before the data."


def _listed(changes: Mapping[str, str]) -> str:
    """Perplexity before KL."""
    return " and ".join(changes[kind] for kind in sorted(changes, reverse=True))


SUMMARY = "summary/"
FILE_MB, FILE_RATIO = f"{SUMMARY}file_mb", f"{SUMMARY}file_ratio"


def summary_metrics(dense: Metrics, final: Metrics, ships: Shipped | None) -> dict[str, float]:
    """Return at most ten metrics of what a run ships under names that MLflow groups, summary/...

    Ratios are to the dense model, that of the file to the file that came in.
    """
    quality = perplexity_of(dense)
    divergence = next((name for name in sorted(final) if "_kl_to_dense" in name and name not in dense), None)
    speed = next((name for name in speeds_of(final) if ratio_in(final, name) is not None), None)
    found: dict[str, float | None] = {
        "file_mb": ships.bytes / 1e6 if ships is not None else final["bytes"] / 1e6,
        "file_ratio": ships.ratio if ships is not None else None,
        "params": final["params"],
        "params_ratio": final["params"] / dense["params"],
        "perplexity": final.get(quality),
        "perplexity_ratio": final[quality] / dense[quality] if quality in final else None,
        "kl_to_dense_nats": final[divergence] if divergence else None,
        "accuracy": final.get(MEAN),
        "accuracy_kept": final[MEAN] / dense[MEAN] if MEAN in final and dense.get(MEAN) else None,
        "speed_ratio": ratio.median if speed and (ratio := ratio_in(final, speed)) is not None else None,
    }
    return {f"{SUMMARY}{name}": float(value) for name, value in found.items() if value is not None}
