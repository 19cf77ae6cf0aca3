"""Charts of a report: plain data in, a picture as SVG text out, which a page includes as it is.

The pictures hold no colour: each is a name of `COLOURS`, which the style sheet defines for light, dark and
print. They hold no script, no style and no font, so that a page needs no permission for them, and text stays
text. Equal data give equal bytes. Nothing here uses matplotlib's global state but its settings, under a lock.
"""

from __future__ import annotations

import io
import logging
import re
import statistics
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

COLOURS = {
    "ink": "#1d2529", "muted": "#5a676f", "line": "#dfe3e3", "dense": "#5f7280", "pruned": "#b8651b",
    "recovered": "#1f7a5c", "sparsified": "#6b55a3", "earlier": "#8d9aa3", "accent": "#2a5f9e",
    "cut": "#c25a3c",
}  # fmt: skip
"""Names of the colours, which are CSS variables of the page, with what they are on a light one."""
MARKERS = {"dense": "o", "pruned": "s", "recovered": "D", "sparsified": "^", "earlier": ".", "accent": "v"}
SIZE = (4.2, 3.0)
"""Width and height in inches; a page scales pictures to its columns."""
POINTS = 9
LABEL_CHARS = 26
MOST_TICKS = 6
Span = tuple[float, float]

_SENTINELS = {name: f"#a5c3{number:02x}" for number, name in enumerate(COLOURS)}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": POINTS,
    "axes.labelsize": POINTS,
    "xtick.labelsize": POINTS,
    "ytick.labelsize": POINTS,
    "legend.fontsize": POINTS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": POINTS,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelcolor": _SENTINELS["muted"],
    "axes.edgecolor": _SENTINELS["muted"],
    "axes.titlecolor": _SENTINELS["ink"],
    "xtick.color": _SENTINELS["muted"],
    "ytick.color": _SENTINELS["muted"],
    "text.color": _SENTINELS["ink"],
    "grid.color": _SENTINELS["line"],
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.dpi": 72,
}
_lock = threading.Lock()


@dataclass(frozen=True)
class Chart:
    """A picture with its title, and in a plain sentence what it shows."""

    name: str
    title: str
    says: str
    svg: str

    @property
    def file_name(self) -> str:
        """Name of the file that the picture is written to."""
        return re.sub(r"[^a-z0-9]+", "_", self.title.lower()).strip("_") + ".svg"

    @property
    def file(self) -> str:
        """The picture as a file of its own: with its colours, on white."""
        head, _, rest = self.svg.partition(">")
        box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', head)
        size = f'width="{2 * float(box[1]):g}" height="{2 * float(box[2]):g}"' if box else ""
        frame = f'xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
        text = f'{head} {frame}>\n<rect width="100%" height="100%" fill="#ffffff"/>{rest}'
        for name, colour in COLOURS.items():
            text = text.replace(f"var(--{name})", colour)
        return text


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot; `x_span` and `y_span` are the ends of its intervals, where it has some.

    `mark` is written beside it.
    """

    label: str
    colour: str
    x: float
    y: float
    x_span: Span | None = None
    y_span: Span | None = None
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), in their order."""

    label: str
    colour: str
    points: Sequence[Span]
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """A shaded span (x, low, high) from point to point."""

    label: str
    colour: str
    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Value:
    """A value of one series in a row of `dots`, with the ends of its interval where it has one."""

    series: str
    value: float
    span: Span | None = None


@dataclass(frozen=True)
class Place:
    """A place on a map: its group, its weight from 0 to 1, and whether it was chosen."""

    x: float
    y: float
    group: int
    weight: float
    chosen: bool


def scatter(
    name: str, title: str, says: str, points: Sequence[Point], x_label: str, y_label: str,
    front: Sequence[Span] = (),
) -> Chart:  # fmt: skip
    """Points with their intervals, and a stepped line along `front`, points sorted by x."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if len(front) > 1:
            xs, ys = zip(*front, strict=True)
            axes.plot(xs, ys, drawstyle="steps-post", color=_SENTINELS["muted"], linewidth=0.9, zorder=1)
        for label in dict.fromkeys(one.label for one in points):
            same = [one for one in points if one.label == label]
            colour = same[0].colour
            axes.errorbar(
                [one.x for one in same],
                [one.y for one in same],
                xerr=_errors([(one.x, one.x_span) for one in same]),
                yerr=_errors([(one.y, one.y_span) for one in same]),
                fmt=MARKERS.get(colour, "o"),
                color=_SENTINELS[colour],
                label=shortened(label),
                elinewidth=1.1,
                capsize=2.5,
                markersize=6.5 if colour != "earlier" else 9,
                zorder=2 if colour == "earlier" else 3,
            )
        marks: dict[Span, list[str]] = {}
        for one in points:
            marks.setdefault((one.x, one.y), []).extend([one.mark] if one.mark else [])
        for place, found in marks.items():
            axes.annotate(", ".join(found), place, xytext=(5, 4), textcoords="offset points")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(0.14)
        axes.xaxis.get_major_locator().set_params(nbins=MOST_TICKS)
        _legend(figure, axes)

    return _drawn(name, title, says, draw)


def lines(
    name: str, title: str, says: str, series: Sequence[Line], x_label: str, y_label: str,
    bands: Sequence[Band] = (), from_zero: bool = True,
) -> Chart:  # fmt: skip
    """Lines over one axis, in front of bands; heights begin `from_zero` where none is below."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for band in bands:
            xs, lows, highs = zip(*band.points, strict=True)
            axes.fill_between(
                xs, lows, highs, color=_SENTINELS[band.colour], alpha=0.2, linewidth=0, label=band.label
            )
        for one in series:
            xs, ys = zip(*one.points, strict=True)
            marker = MARKERS.get(one.colour, "o") if len(xs) <= 40 and not one.dashed else ""
            axes.plot(
                xs,
                ys,
                color=_SENTINELS[one.colour],
                label=shortened(one.label),
                marker=marker,
                markersize=3.2,
                linestyle="--" if one.dashed else "-",
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.get_major_locator().set_params(
            integer=all(x == int(x) for one in series for x, _ in one.points), nbins=MOST_TICKS
        )
        if from_zero and min(y for one in series for _, y in one.points) >= 0:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            _legend(figure, axes)

    return _drawn(name, title, says, draw)


def widths(name: str, title: str, says: str, panels: Mapping[str, Sequence[tuple[int, int]]]) -> Chart:
    """A panel for each kind of units: its number in each layer before, and within it the number after."""

    def draw(figure: Any) -> None:
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (kind, pairs) in zip(every, panels.items(), strict=True):
            layers = range(len(pairs))
            before, after = [had for had, _ in pairs], [has for _, has in pairs]
            axes.bar(layers, before, color=_SENTINELS["cut"], alpha=0.35, width=0.8, label="removed")
            axes.bar(layers, after, color=_SENTINELS["recovered"], width=0.8, label="kept")
            axes.set_ylabel(kind)
            axes.grid(axis="x", visible=False)
            axes.yaxis.get_major_locator().set_params(integer=True, nbins=5 if len(panels) == 1 else 3)
        every[-1].set_xlabel("layer")
        every[-1].xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, every[0])

    return _drawn(name, title, says, draw, height=SIZE[1] + 0.9 * max(0, len(panels) - 2))


def dots(name: str, title: str, says: str, rows: Mapping[str, Sequence[Value]], x_label: str) -> Chart:
    """A row for each label, and in it a dot with its interval for each series."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        series = list(dict.fromkeys(value.series for row in rows.values() for value in row))
        step = 0.64 / max(1, len(series))
        for place, one in enumerate(series):
            found = [
                (row, value)
                for row, values in enumerate(rows.values())
                for value in values
                if value.series == one
            ]
            axes.errorbar(
                [value.value for _, value in found],
                [row + step * (place - (len(series) - 1) / 2) for row, _ in found],
                xerr=_errors([(value.value, value.span) for _, value in found]),
                fmt=MARKERS.get(one, "o"),
                color=_SENTINELS[one if one in COLOURS else "accent"],
                label=shortened(one),
                markersize=5.5,
                elinewidth=1.1,
                capsize=2.5,
            )
        axes.set_yticks(range(len(rows)), [shortened(label) for label in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.xaxis.get_major_locator().set_params(nbins=MOST_TICKS)
        axes.set_xlabel(x_label)
        if len(series) > 1:
            _legend(figure, axes)

    return _drawn(name, title, says, draw, height=max(SIZE[1], 0.75 + 0.3 * len(rows)))


def groups(name: str, title: str, says: str, places: Sequence[Place]) -> Chart:
    """Places on a map, each group in a colour and a sign of its own with its number at its middle."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = [one for one in COLOURS if one not in ("line", "muted", "ink")]
        signs = list(dict.fromkeys(MARKERS.values()))
        for group in sorted({one.group for one in places}):
            same = [one for one in places if one.group == group]
            colour = _SENTINELS[colours[group % len(colours)]]
            sign = signs[group // len(colours) % len(signs)]
            for chosen in (False, True):
                shown = [one for one in same if one.chosen == chosen]
                axes.scatter(
                    [one.x for one in shown],
                    [one.y for one in shown],
                    s=[4 + 46 * one.weight for one in shown],
                    marker=sign,
                    color=colour,
                    alpha=1.0 if chosen else 0.28,
                    edgecolors=_SENTINELS["ink"] if chosen else "none",
                    linewidths=0.7,
                    zorder=3 if chosen else 2,
                )
            middle = (
                statistics.median(one.x for one in same),
                statistics.median(one.y for one in same),
            )
            axes.annotate(str(group), middle, ha="center", va="center", fontweight="bold", zorder=4)
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)

    return _drawn(name, title, says, draw, height=SIZE[0])


def histogram(
    name: str, title: str, says: str, kept: Sequence[float], cut: Sequence[float], x_label: str
) -> Chart:
    """How often values occur among what was kept and, stacked on it, what was cut; logarithmic counts."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.hist(
            [list(kept), list(cut)],
            bins=48,
            stacked=True,
            color=[_SENTINELS["recovered"], _SENTINELS["cut"]],
            label=[f"kept ({len(kept):,})", f"cut ({len(cut):,})"],
            log=True,
        )
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda count, place: f"{count:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_ylabel("units (logarithmic)")
        _legend(figure, axes)

    return _drawn(name, title, says, draw)


def shortened(label: str) -> str:
    """A label short enough for a picture; what cannot be printed is left out."""
    line = "".join(char if char.isprintable() else " " for char in label)
    return line if len(line) <= LABEL_CHARS else f"{line[: LABEL_CHARS - 1]}…"


def _errors(values: Sequence[tuple[float, Span | None]]) -> list[list[float]] | None:
    """Lengths below and above each value; None where none has an interval."""
    if all(span is None for _, span in values):
        return None
    spans = [(value, span or (value, value)) for value, span in values]
    return [
        [max(0.0, value - low) for value, (low, _) in spans],
        [max(0.0, high - value) for value, (_, high) in spans],
    ]


def _legend(figure: Any, axes: Any) -> None:
    # Of parts with one label the last.
    labelled = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels, handles = list(labelled), list(labelled.values())
    # Of points with intervals and of bars the first part: a sign without its lines.
    handles = [one[0] if isinstance(one, tuple) else one for one in handles]
    columns = 3 if max(map(len, labels), default=0) <= 14 else 2
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        handletextpad=0.4,
        columnspacing=1.2,
        borderpad=0.1,
    )


def _drawn(name: str, title: str, says: str, draw: Callable[[Any], None], height: float = SIZE[1]) -> Chart:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    written = io.StringIO()
    # Settings are the process's, and runs of a sweep may be drawn in several threads.
    with _lock, mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        # Signs that the measuring font lacks are drawn by the browser's fonts.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        draw(figure)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return Chart(name, title, says, _inline(written.getvalue(), f"{title}: {says}"))


def _inline(svg: str, label: str) -> str:
    """The picture for use inside HTML: without a size, with attributes for styles and names for colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="{box[1] if box else ""}">'
    body = head + body[body.index(">") + 1 :]
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), body)
    for name, sentinel in _SENTINELS.items():
        body = body.replace(sentinel, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", body).strip()


def _attributes(style: str) -> str:
    pairs = [declaration.partition(":")[::2] for declaration in style.split(";") if ":" in declaration]
    return "".join(
        f' {key.strip()}="{value.strip()}"'
        for key, value in pairs
        if key.strip() not in ("font-family", "font")
    )
