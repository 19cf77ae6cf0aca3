"""Files of few bits: their table, and whether pruning or fewer bits is the better way to a size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.tasks.evaluate.paired import MEAN, change_in, perplexity_ratio
from resprout.tasks.measure.ratio import Ratio, ratio_in, ratio_of
from resprout.tasks.quantize.names import DENSE, SOURCE_FILE, base_of, judged, program_of
from resprout.tasks.report.shipped import AS_LARGE, Shipped
from resprout.tasks.report.table import (
    DECODE,
    NONE,
    SPEED,
    Metrics,
    Row,
    accuracy_cell,
    perplexity_of,
    ratio_cell,
    speeds_of,
)

WHOLE = ("F32", "F16", "BF16", "unknown")
"""Types of GGUF files that round nothing, or of which nothing is known."""
EVEN = Ratio(1.0, 1.0, 1.0)
Windows = Sequence[Sequence[float]]
"""Negative log-likelihood and number of the scored tokens of each window."""


@dataclass(frozen=True)
class FewerBits:
    """A file of the pruned model, and the dense model's best for the same program that is no larger, if any.

    `worse` is the pruned file's perplexity over its rival's, window by window; `faster` its speed of writing
    over the rival's, round by round, where both were measured.
    """

    file: str
    rival: str | None = None
    worse: Ratio = EVEN
    faster: Ratio | None = None
    nats: tuple[float, float] | None = None
    """KL to the dense model, of the pruned file and of its rival."""

    @property
    def lost(self) -> bool:
        """Whether the rival's perplexity is lower, outside the noise."""
        return self.rival is not None and self.worse.different and self.worse.median > 1

    @property
    def sentence(self) -> str:
        """Which of them wins at this size."""
        if self.rival is None:
            return f"No file of the dense model that was compared is as small as {self.file}."
        speed = "" if self.faster is None else f"; it writes {_times(self.faster)} as fast"
        if self.faster is not None and not self.faster.different:
            speed = "; both write equally fast, as far as this machine can tell"
        behind = f"{self.rival}, the dense model's best file that is no larger{speed}{self._other_way}."
        if not self.worse.different:
            return f"Too close to call at this size: {self.file} is no different in perplexity from {behind}"
        winner = "Fewer bits win" if self.lost else "Pruning wins"
        return f"{winner} at this size: {self.file} has {_times(self.worse)} the perplexity of {behind}"

    @property
    def _other_way(self) -> str:
        """A clause on divergence where it does not go the way of perplexity."""
        if self.nats is None or self.nats[0] == self.nats[1] or (self.nats[0] > self.nats[1]) == self.lost:
            return ""
        far = "further from" if self.nats[0] > self.nats[1] else "nearer to"
        return f"; it lies {far} the dense model (KL {self.nats[0]:.4f} nats for {self.nats[1]:.4f})"


def _times(ratio: Ratio) -> str:
    return f"x{ratio.median:.2f} (x{ratio.low:.2f}-{ratio.high:.2f})"


def against_fewer_bits(
    files: Mapping[str, Metrics], windows: Mapping[str, Windows], timed: Mapping[str, Any]
) -> list[FewerBits]:
    """Each file of the pruned model beside the dense model's best that is no larger.

    `timed` are by name and run the `seconds` of each round, as stage measure writes them. Empty where no file
    of the dense model was compared.
    """
    dense = [name for name in files if name.startswith(f"{DENSE} ")]
    found = []
    for name in files if dense else ():
        if name in dense or name == SOURCE_FILE:
            continue
        quality, most = perplexity_of(files[name]), AS_LARGE * files[name]["bytes"]
        served = [one for one in dense if program_of(one) == program_of(name)]
        fitting = [one for one in served if files[one]["bytes"] <= most]
        if not fitting:
            found.append(FewerBits(name))
            continue
        rival = min(fitting, key=lambda one: files[one][quality])
        faster = _ratios(timed.get(rival, {}), timed.get(name, {}))
        writing = next((ratio for run, ratio in faster.items() if run.startswith(DECODE)), None)
        worse = perplexity_ratio(windows[rival], windows[name])
        divergence = next((one for one in files[name] if "_kl_to_dense" in one), "")
        known = divergence in files[name] and divergence in files[rival]
        nats = (files[name][divergence], files[rival][divergence]) if known else None
        found.append(FewerBits(name, rival, worse, writing, nats))
    return found


def judged_models(
    config: Mapping[str, Any],
    models: Mapping[str, Metrics],
    files: Mapping[str, Metrics],
    windows: Mapping[str, Windows],
    ships: Shipped | None = None,
) -> tuple[str | None, Mapping[str, Metrics], str]:
    """Return the file that a run's verdict is about, its base and itself, and words for that.

    Of a run without files the models themselves, with the bytes of the file that came in and of what ships.
    """
    name = judged(config)
    if name is None or name not in files:
        if ships is None:
            return None, models, ""
        last = list(models)[-1]
        dense, final = ({"bytes": size} for size in (ships.source_bytes, ships.bytes))
        sized = {**models, DENSE: {**models[DENSE], **dense}, last: {**models[last], **final}}
        return None, sized, "" if ships.alike else f"as {ships.format}, against the source file: "
    base = base_of(name, files)
    if base is None:
        return name, {DENSE: models[DENSE], name: files[name]}, f"as {name}, against the dense model: "
    quality = perplexity_of(files[name])
    own = {**files[name], **perplexity_ratio(windows[base], windows[name]).metrics(quality)}
    return name, {base: files[base], name: own}, f"as {name}, against {_the(base)}: "


def _the(base: str) -> str:
    return "the source file" if base == SOURCE_FILE else base


def bias(source_format: str, files: Mapping[str, Metrics]) -> str:
    """That a source of few bits favours the dense model's files; empty where it is not one of them."""
    form, _, kind = source_format.partition(":")
    if form != "gguf" or kind in WHOLE or not files:
        return ""
    return (
        f"The run began with a {kind} file, on whose grid the dense model's weights lie: a file of that type "
        "holds them without loss, but not those of the pruned and retrained model. A comparison from weights "
        "of 16 bits has no such bias."
    )


def file_rows(
    files: Mapping[str, Metrics], brief: bool = False, runs: Collection[str] = ()
) -> tuple[tuple[str, ...], list[Row]]:
    """The headings of the columns, and a row for each file, the larger first.

    `brief`: ratios stand without their intervals, and = where they hold 1. `runs` are the speeds that have a
    column; without them all have one.
    """

    def held(metrics: Metrics, name: str, form: str = ",.1f") -> str:
        ratio = ratio_in(metrics, name)
        if not brief or ratio is None:
            return ratio_cell(metrics, name, form)
        return format(metrics[name], form) + (f" x{ratio.median:.2f}" if ratio.different else " =")

    def accuracy(metrics: Metrics) -> str:
        change = change_in(metrics, MEAN)
        if not brief or change is None:
            return accuracy_cell(metrics, MEAN)
        return f"{metrics[MEAN]:.3f}" + (" =" if change[1] <= 0 <= change[2] else f" {change[0]:+.3f}")

    first = next(iter(files.values()))
    quality = perplexity_of(first)
    divergence = next((name for name in sorted(first) if "_kl_to_dense" in name), None)
    speeds = [name for name in speeds_of(first) if not runs or name.removesuffix(SPEED) in runs]
    heads = ["MB", "perplexity", "KL to dense"]
    heads += ["mean accuracy"] if MEAN in first else []
    heads += [f"{name.removesuffix(SPEED)}, tok/s" for name in speeds]
    rows = []
    for name, metrics in sorted(files.items(), key=lambda one: -one[1]["bytes"]):
        cells = [f"{metrics['bytes'] / 1e6:,.1f}", held(metrics, quality, ",.2f")]
        cells.append(f"{metrics[divergence]:.4f}" if divergence and divergence in metrics else NONE)
        cells += [accuracy(metrics)] if MEAN in first else []
        cells += [held(metrics, speed) for speed in speeds]
        rows.append(Row(name, tuple(cells)))
    return tuple(heads), rows


def further_speeds(files: Mapping[str, Metrics], runs: Collection[str]) -> list[str]:
    """A line for each speed that is not of `runs`: tokens a second of each file, the larger first."""
    lines = []
    for name in speeds_of(next(iter(files.values()))):
        if name.removesuffix(SPEED) not in runs:
            each = (
                f"{file} {ratio_cell(metrics, name)}"
                for file, metrics in sorted(files.items(), key=lambda one: -one[1]["bytes"])
            )
            lines.append(f"{name.removesuffix(SPEED)}, tok/s: {'; '.join(each)}")
    return lines


def note(files: Mapping[str, Metrics], brief: bool = False) -> str:
    """Against what the ratios in the table are."""
    bases = dict.fromkeys(base_of(name, files) for name in files)
    others = {program_of(name) for name in files} - {program_of(SOURCE_FILE)}
    speed = "those of the dense model's file in the format"
    if SOURCE_FILE in bases:
        speed = f"the source file's, in other programs {speed}" if others else "the source file's"
    fallen = {name: int(one.get("fallback_tensors", 0)) for name, one in files.items()}
    held = ", ".join(f"{count} of {name}" for name, count in fallen.items() if count)
    if held:
        held = f" Matrices whose rows the type's blocks do not fill are held in another: {held}."
    signs = "; = where they do not differ" if brief else ", all with an interval of 95 %"
    return (
        "Each file as the program that serves it computes it: perplexity and accuracy against the dense "
        f"model, speeds against {speed}{signs}.{held}"
    )


def _ratios(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Ratio]:
    return {run: ratio_of(base[run]["seconds"], other[run]["seconds"]) for run in base if run in other}
