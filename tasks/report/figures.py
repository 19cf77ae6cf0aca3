"""The pictures of a run's report, each drawn where the run holds what it shows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resprout.tasks.evaluate.paired import quantile
from resprout.tasks.measure.ratio import COVERAGE, ratio_in
from resprout.tasks.quantize.names import DENSE, SOURCE_FILE
from resprout.tasks.report.charts import (
    COLOURS,
    Chart,
    Line,
    Place,
    Point,
    Span,
    Value,
    dots,
    groups,
    histogram,
    lines,
    scatter,
    widths,
)
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.table import SPEED, Metrics, perplexity_of, speeds_of

UnitScores = Mapping[int, Mapping[str, Sequence[float]]]
"""Scores of units by layer of the uncut model and kind."""
UNITS = {
    "ffn": "FFN channels",
    "kv_groups": "KV groups",
    "heads": "query heads",
    "hidden": "hidden channels",
}
MAP, MAP_IDS = "map.safetensors", "map.json"
"""Files of a selection: embeddings of some of the pool's rows, and their ids."""
LEAST_MAPPED = 12
PLACED = " A speed is placed by its ratio to the dense model's in the same rounds."
SHORT_OF_ROUNDS = " Too few rounds were measured for that of a speed (measure.repeats below 6)."
INTERVAL = "Lines through a point are its interval of 95 %, relative to the dense model."


def trade_offs(
    models: Mapping[str, Metrics], earlier: Sequence[PastRun] = (), coverage: float = COVERAGE
) -> Iterator[Chart]:
    """Quality against size, and against the speed of decoding where it was measured.

    `coverage` is that of the speeds' intervals.

    Speeds of `earlier` runs, measured at other times, are placed by their ratio to the dense model's then.
    """
    dense = next(iter(models.values()))
    shown = [(name, colour_of(name), metrics) for name, metrics in models.items()]
    before = [("earlier runs", "earlier", one.last) for one in earlier]
    for name, kind, label, scale in trade_axes(dense):
        points = [
            point
            for model, colour, metrics in [*before, *shown]
            if (point := trade_point(model, colour, metrics, dense, name, scale)) is not None
        ]
        better = "further left is smaller" if kind == "size" else "further right is faster"
        others = " Earlier runs are others on this model and text." if before else ""
        if kind == "speed":
            others = f"{others}{PLACED}" + (SHORT_OF_ROUNDS if coverage < COVERAGE else "")
        says = f"Lower is better, {better}. {INTERVAL}{others}"
        yield scatter(kind, f"Quality against {kind}", says, points, label, "perplexity on held-out text")


def file_trade_offs(files: Mapping[str, Metrics]) -> Iterator[Chart]:
    """Quality of files of few bits against their size, and against the speed of writing where measured."""
    if not files:
        return
    first = next(iter(files.values()))
    quality = perplexity_of(first)
    axes = [("bytes", "size", "MB of the file", 1e-6), *trade_axes(first)[1:]]
    for name, kind, label, scale in axes:
        points = [
            Point(*_kind(file), scale * metrics[name], metrics[quality], mark=file.partition(":")[2])
            for file, metrics in files.items()
            if name in metrics
        ]
        better = "further left is smaller" if kind == "size" else "further right is faster"
        says = f"Files of few bits in the program that serves them. Lower is better, {better}."
        yield scatter(f"files-{kind}", f"Files: quality against {kind}", says, points, label, "perplexity")


def _kind(name: str) -> tuple[str, str]:
    """What a file is of, and its colour."""
    if name == SOURCE_FILE:
        return "source file", "accent"
    return ("dense model", "dense") if name.startswith(f"{DENSE} ") else ("pruned model", "recovered")


def trade_axes(dense: Metrics) -> list[tuple[str, str, str, float]]:
    """What quality is drawn against: a metric, its kind, its label with the unit, and its scale."""
    axes = [("bytes", "size", "weights in MB", 1e-6)]
    return axes + [
        (name, "speed", f"{name.removesuffix(SPEED)}, tokens a second", 1.0) for name in speeds_of(dense)[:1]
    ]


def trade_point(
    label: str, colour: str, metrics: Metrics, dense: Metrics, name: str, scale: float
) -> Point | None:
    """A model at its metric `name` and its perplexity, by ratios to `dense`; None where it has not both."""
    quality = perplexity_of(dense)
    if name not in metrics or quality not in metrics:
        return None
    ratio = ratio_in(metrics, name)
    x = metrics[name] if ratio is None else dense[name] * ratio.median
    across, up = _span(dense, metrics, name, scale), _span(dense, metrics, quality)
    return Point(label, colour, scale * x, metrics[quality], across, up)


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
    """Training loss against the tokens that were trained on so far, where there is a loss on tokens."""
    points, seen = list[Span](), 0.0
    for entry in (one for one in history if "loss" in one):
        seen += entry["tokens"]
        points.append((seen, entry["loss"]))
    if len(points) > 1:
        says = f"Mean loss in nats a response token at each of {len(points)} steps of recovery."
        loss = Line("training loss", "recovered", points)
        yield lines("loss", "Training loss", says, [loss], "tokens trained on", "loss, nats a token")


def unit_scores(scores: UnitScores, plan: Mapping[str, Any]) -> Iterator[Chart]:
    """Scores of the units that were kept and of those that were cut, for each kind that lost some."""
    for unit in plan["units"]:
        kept, cut, axis = split_scores(scores, plan, unit)
        if kept and cut:
            says = (
                f"What each of {len(kept) + len(cut):,} units is worth by the criterion {plan['criterion']}. "
                "Units are cut from the low end, in each layer by itself where all layers stay alike."
            )
            yield histogram(f"scores-{unit}", f"Scores of {UNITS.get(unit, unit)}", says, kept, cut, axis)


def split_scores(
    scores: UnitScores, plan: Mapping[str, Any], unit: str
) -> tuple[list[float], list[float], str]:
    """Scores of kept units, of cut ones, and what they are in, of one kind.

    Of several units a layer they are held against the layer's median, because layers differ in scale: as
    powers of ten where all are above 0, else as differences.
    """
    kept, cut = list[float](), list[float]()
    layers = {
        place if one.get("index") is None else one["index"]: one for place, one in enumerate(plan["layers"])
    }
    # Of removed layers a score stays, of which nothing is kept.
    found = {layer: by_kind[unit] for layer, by_kind in scores.items() if unit in by_kind}
    positive = all(value > 0 for values in found.values() for value in values)
    alone = all(len(values) == 1 for values in found.values())
    for layer, values in found.items():
        stays = _stays(layers.get(layer), plan, unit, alone)
        if stays is None:
            return [], [], ""
        middle = 0.0 if alone else statistics.median(values)
        for place, value in enumerate(values):
            shown = value if alone else math.log10(value / middle) if positive else value - middle
            (kept if place in stays else cut).append(shown)
    axis = "score / layer's median, powers of ten" if positive else "score - layer's median"
    return kept, cut, "score of the layer" if alone else axis


def _stays(
    layer: Mapping[str, Any] | None, plan: Mapping[str, Any], unit: str, alone: bool
) -> set[int] | None:
    """Places of the units that stay in a layer; None where the plan does not say which they are."""
    if layer is None:
        return set()
    if unit == "layers" and alone:
        return {0}
    if unit == "hidden":
        kept = plan.get("hidden")
    elif unit == "ffn" and layer.get("expert_ffn") is not None:
        kept = layer["expert_ffn"]
    elif unit == "ffn" and layer.get("experts") is not None:
        kept = None
    else:
        kept = layer.get(unit)
    return None if kept is None else set(kept)


def layer_distances(distances: Mapping[str, Sequence[float]]) -> Iterator[Chart]:
    """How far each model's hidden states are from the dense model's behind each layer."""
    series = [
        Line(model, colour_of(model), list(enumerate(found)))
        for model, found in distances.items()
        if len(found) > 1
    ]
    if series:
        says = (
            "One minus the cosine between a model's hidden states and the dense model's on held-out text, "
            "behind each layer: 0 where they point the same way. Where a line rises, the layer adds to it."
        )
        yield lines("layers", "Divergence by layer", says, series, "layer", "1 - cosine of hidden states")


def source_divergence(sources: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Chart]:
    """KL to dense by the source of the held-out text, where there are several; by model, then source."""
    names = list(dict.fromkeys(name for by_source in sources.values() for name in by_source))
    rows = {
        label: [
            Value(model, found[name]["kl"]) for model, found in sources.items() if "kl" in found.get(name, {})
        ]
        for name, label in zip(names, without_common(names), strict=True)
    }
    rows = {label: row for label, row in rows.items() if row}
    if len(rows) > 1:
        says = "How far predictions are from the dense model's, by where the held-out text is from."
        yield dots("sources", "Divergence by source", says, rows, "KL to dense, nats a token")


def category_divergence(
    decisions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Chart]:
    """Divergence of the pruned model by the category of the pool's rows, with intervals of 95 %."""
    category = {row["id"]: row.get("category") or "" for row in rows}
    found: dict[str, list[float]] = {}
    for one in decisions:
        # A row whose prompt leaves no room for its answer was not compared.
        if one.get("jsd") is not None and category.get(one["id"]):
            found.setdefault(category[one["id"]], []).append(one["jsd"])
    if len(found) > 1:
        bars = {
            f"{name} ({len(values)})": [Value("pruned", statistics.fmean(values), _interval(values))]
            for name, values in sorted(found.items(), key=lambda item: -statistics.fmean(item[1]))
        }
        says = (
            "Mean Jensen-Shannon divergence between pruned and dense model on the answers of the pool, "
            "before recovery: high where pruning hurt. In brackets the rows, lines are intervals of 95 %."
        )
        yield dots("categories", "Divergence by category", says, bars, "divergence, nats a token")


def rows_on_a_map(folder: Path) -> Iterator[Chart]:
    """The pool's rows by t-SNE of their embeddings, where the selection left some."""
    if not (folder / MAP).is_file():
        return
    from safetensors.numpy import load_file
    from sklearn.manifold import TSNE

    decisions = {}
    with (folder / "decisions.jsonl").open(encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            decisions[one["id"]] = one
    ids = json.loads((folder / MAP_IDS).read_text(encoding="utf-8"))
    embeddings = load_file(folder / MAP)["embeddings"]
    if len(ids) < LEAST_MAPPED:
        return
    near = min(30.0, (len(ids) - 1) / 4)
    places = TSNE(perplexity=near, init="pca", random_state=0).fit_transform(embeddings)
    placed = ((decisions[one], place) for one, place in zip(ids, places.tolist(), strict=True))
    shown = [(one, place) for one, place in placed if one["cluster"] is not None and one["cluster"] >= 0]
    highest = max((one["jsd"] or 0.0 for one, _ in shown), default=0.0) or 1.0
    found = [
        Place(x, y, one["cluster"], (one["jsd"] or 0.0) / highest, one["accepted"]) for one, (x, y) in shown
    ]
    chosen = sum(one.chosen for one in found)
    unknown = sum(one["jsd"] is None for one, _ in shown)
    beside = f" (the smallest: {unknown:,} that were not compared)" if unknown else ""
    says = (
        f"{len(found):,} rows by what their instructions say (t-SNE): like ones lie together. Colours and "
        f"numbers are clusters, signs grow with the divergence between pruned and dense model{beside}, dark "
        f"rims are the {chosen:,} rows chosen, of which more are drawn than is their share of the pool."
    )
    yield groups("map", "Rows on a map", says, found)


def without_common(names: Sequence[str]) -> list[str]:
    """The names, which may be paths, without the parts that all of them begin or end with."""
    parts = [name.split("/") for name in names]
    if len(parts) < 2:
        return list(names)
    shortest = min(map(len, parts)) - 1
    front = next((at for at in range(shortest) if len({one[at] for one in parts}) > 1), shortest)
    back = next(
        (at for at in range(shortest - front) if len({one[-1 - at] for one in parts}) > 1), shortest - front
    )
    return ["/".join(one[front : len(one) - back]) for one in parts]


def _interval(values: Sequence[float]) -> Span | None:
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = quantile(len(values) - 1) * error
    # A divergence is never below zero.
    return max(0.0, mean - reach), mean + reach


def colour_of(model: str) -> str:
    """Name of the colour in which a model is drawn."""
    return model if model in COLOURS else "accent"


def _span(dense: Metrics, metrics: Metrics, name: str, scale: float = 1.0) -> Span | None:
    ratio = ratio_in(metrics, name)
    return None if ratio is None else (scale * dense[name] * ratio.low, scale * dense[name] * ratio.high)


def _around(value: float, error: float) -> Span:
    return value - error, value + error
