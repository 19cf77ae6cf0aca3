"""Pictures: no colour, script or style of their own, all text there as text, equal bytes for equal data."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import pytest

from resprout.tasks.report import charts
from resprout.tasks.report.charts import Chart, Line, Point, Value

HOSTILE = "<script>alert(1)</script> $x_1$ \x00"


def scatter() -> Chart:
    points = [
        Point("dense", "dense", 10.0, 2.0),
        Point("pruned", "pruned", 8.0, 3.0, x_span=(7.0, 9.5), y_span=(2.5, 3.25)),
        Point(HOSTILE, "earlier", 9.0, 2.5),
    ]
    return charts.scatter(
        "s", "Quality against size", "Lower is better.", points, "weights in MB", "perplexity"
    )


CHARTS = {
    "scatter": scatter,
    "lines": lambda: charts.lines(
        "l", "Loss", "It falls.", [Line("loss", "recovered", [(1, 3.0), (2, 2.0)])], "tokens", "nats"
    ),
    "widths": lambda: charts.widths("w", "Widths", "Kept.", {"FFN channels": [(4, 4), (4, 2)]}),
    "dots": lambda: charts.dots(
        "d", "Accuracy", "Right.", {"piqa": [Value("dense", 0.5, (0.4, 0.6)), Value("pruned", 0.4)]}, "share"
    ),
    "histogram": lambda: charts.histogram("h", "Scores", "Cut.", [1.0, 2.0, 3.0], [0.5], "score"),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_picture_brings_nothing_of_its_own(name: str) -> None:
    chart = CHARTS[name]()
    assert chart == CHARTS[name](), "equal data, equal bytes"
    assert not re.search(r"#[0-9a-f]{6}\b|<style|<script|style=|font-family|http|<metadata", chart.svg)
    used = set(re.findall(r"var\(--(\w+)\)", chart.svg))
    assert used <= set(charts.COLOURS)
    assert "muted" in used
    root = ElementTree.fromstring(chart.svg)
    assert root.get("aria-label") == f"{chart.title}: {chart.says}"
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', chart.svg):
        assert "".join(target) in ids


@pytest.mark.parametrize("name", CHARTS)
def test_as_a_file_a_picture_has_its_colours_and_its_name(name: str) -> None:
    chart = CHARTS[name]()
    root = ElementTree.fromstring(chart.file)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in chart.file
    assert "<script" not in chart.file
    assert re.fullmatch(r"[a-z0-9_]+\.svg", chart.file_name)


def texts(chart: Chart) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(chart.svg).iter("text")]


def test_text_stays_text_and_a_label_is_neither_markup_nor_mathematics() -> None:
    found = texts(scatter())
    for text in ("weights in MB", "perplexity", "dense", "pruned"):
        assert text in found
    (hostile,) = (text for text in found if text.startswith("<script>"))
    assert "\x00" not in hostile
    assert len(hostile) == charts.LABEL_CHARS
    assert "<script" not in scatter().svg


def test_points_lie_where_their_values_are() -> None:
    """x grows to the right and y upwards, an interval of 2.5 is 2.5 times as long as one of 1."""
    svg = charts.scatter(
        "p", "t", "s",
        [Point("a", "dense", 0.0, 0.0, x_span=(0.0, 1.0)), Point("b", "pruned", 4.0, 5.0, x_span=(4.0, 6.5))],
        "x", "y",
    ).svg  # fmt: skip
    lines = re.findall(
        r'<path d="M ([\d.]+) ([\d.]+)\nL ([\d.]+) \2\n?" [^>]*stroke="var\(--(dense|pruned)\)"', svg
    )
    spans = {colour: (float(x1), float(y), float(x2)) for x1, y, x2, colour in lines}
    (left, low, end), (right, high, far) = spans["dense"], spans["pruned"]
    assert left < right
    assert low > high, "SVG counts from above"
    assert (far - right) / (end - left) == pytest.approx(2.5, rel=1e-3)


def test_bars_are_as_high_as_widths() -> None:
    svg = CHARTS["widths"]().svg
    heights = []
    for path in re.findall(r'<path d="([^"]+)"[^>]*fill="var\(--recovered\)"', svg)[:2]:
        ys = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)\n", path)]
        heights.append(max(ys) - min(ys))
    assert heights[0] == pytest.approx(2 * heights[1], rel=1e-3), "4 and 2 channels are left"


def test_threads_draw_the_same_as_one(tmp_path: object) -> None:
    alone = [CHARTS[name]().svg for name in CHARTS]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda name: CHARTS[name]().svg, CHARTS)) == alone
