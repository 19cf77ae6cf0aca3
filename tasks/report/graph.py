"""A lineage as a picture: boxes in rows, what was made below what it was made from, no wider than a page.

The layout is Sugiyama's (IEEE Trans. SMC 11(2), 1981): rows by longest path, an order within each row by the
middle of the neighbours, and a place for every line that passes a row. Lines that follow from others are left
out: what a stage reads through another one is behind that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

WIDTH, HEIGHT = 172, 46
"""Size of a box, in pixels."""
ACROSS, DOWN, LANE = 16, 36, 14
"""Gaps beside and below a box, and the width of a line's place in a row."""
MOST = 6
"""Boxes in a row."""
SWEEPS = 8


@dataclass(frozen=True)
class Label:
    """What a box shows of the node `name`: a line of text, a smaller one, a title, where it leads to."""

    name: str
    text: str
    small: str
    title: str
    kind: str = ""
    """source, end, or neither."""
    link: str = ""

    @classmethod
    def of(cls, name: str, text: str, small: str, title: str, kind: str = "", link: str = "") -> Label:
        """The label with its lines cut to what a box holds."""
        return cls(name, _cut(text, 25), _cut(small, 26), title, kind, link)


def _cut(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"


@dataclass(frozen=True)
class Box:
    """The place of a box: its upper left corner."""

    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """Boxes and lines with the size of the whole; a line is an SVG path by (maker, made)."""

    boxes: dict[str, Box]
    lines: dict[tuple[str, str], str]
    width: float
    height: float
    box_width: int = WIDTH
    box_height: int = HEIGHT


@dataclass
class _Row:
    """Names in a row from left to right; a pair is the place of a line that passes it."""

    items: list[object] = field(default_factory=list)


def draw(parents: Mapping[str, Iterable[str]]) -> Drawing:
    """Return the drawing of a graph without circles, given by what each node was made from."""
    direct = reduced(parents)
    rank = _ranks(direct)
    rows = [_Row() for _ in range(max(rank.values(), default=0) + 1)]
    for name in direct:
        rows[rank[name]].items.append(name)
    above: dict[object, list[object]] = {name: [] for name in direct}
    paths: dict[tuple[str, str], list[object]] = {}
    for name, makers in direct.items():
        for maker in makers:
            chain: list[object] = [maker]
            for row in range(rank[maker] + 1, rank[name]):
                lane = (maker, name, row)
                rows[row].items.append(lane)
                above[lane] = [chain[-1]]
                chain.append(lane)
            above[name].append(chain[-1])
            paths[maker, name] = [*chain, name]
    below: dict[object, list[object]] = {item: [] for item in above}
    for item, over in above.items():
        for one in over:
            below[one].append(item)
    middle = _placed(rows, above, below)
    left = min(middle[item] - _width(item) / 2 for item in middle)
    middle = {item: x - left + 1 for item, x in middle.items()}
    top = {item: 1 + at * (HEIGHT + DOWN) for at, row in enumerate(rows) for item in row.items}
    return Drawing(
        {name: Box(round(middle[name] - WIDTH / 2, 1), top[name]) for name in direct},
        {ends: _path([(middle[item], top[item]) for item in chain]) for ends, chain in paths.items()},
        round(max(middle[item] + _width(item) / 2 for item in middle) + 1, 1),
        2 + len(rows) * HEIGHT + (len(rows) - 1) * DOWN,
    )


def reduced(parents: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The graph without lines that follow from longer ways between the same nodes."""
    behind: dict[str, set[str]] = {}

    def all_behind(name: str) -> set[str]:
        if name not in behind:
            behind[name] = set()
            for parent in parents[name]:
                behind[name] |= {parent, *all_behind(parent)}
        return behind[name]

    return {
        name: [
            parent
            for parent in dict.fromkeys(makers)
            if not any(parent in all_behind(other) for other in makers if other != parent)
        ]
        for name, makers in parents.items()
    }


def _ranks(direct: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The row of each node: as far down as what is made from it allows, and at most `MOST` in one row."""
    made: dict[str, list[str]] = {name: [] for name in direct}
    for name, makers in direct.items():
        for maker in makers:
            made[maker].append(name)
    to_end: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in to_end:
            to_end[name] = max((height(one) + 1 for one in made[name]), default=0)
        return to_end[name]

    deepest = max((height(name) for name in direct), default=0)
    rank, row = dict[str, int](), 0
    for level in range(deepest + 1):
        here = [name for name in direct if deepest - to_end[name] == level]
        # Those without makers first: their lines are the shortest when they stand above the others.
        here.sort(key=lambda name: bool(direct[name]))
        for start in range(0, len(here), MOST):
            for name in here[start : start + MOST]:
                rank[name] = row
            row += 1
    return rank


def _placed(
    rows: Sequence[_Row],
    above: Mapping[object, Sequence[object]],
    below: Mapping[object, Sequence[object]],
) -> dict[object, float]:
    """The middle of each item, after sweeps down and up that bring it near its neighbours."""
    middle: dict[object, float] = {}
    for row in rows:
        _spread(row, middle, {item: float(at) * WIDTH for at, item in enumerate(row.items)})
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = {}
            for item in row.items:
                near = (above if down else below)[item] or (below if down else above)[item]
                wanted[item] = sum(middle[one] for one in near) / len(near) if near else middle[item]
            if sweep < SWEEPS - 2:
                row.items.sort(key=lambda item, wanted=wanted: wanted[item])  # type: ignore[misc]
            _spread(row, middle, wanted)
    return middle


def _spread(row: _Row, middle: dict[object, float], wanted: Mapping[object, float]) -> None:
    """Place the items of a row in their order, none over another, nearest to where they are `wanted`."""
    from scipy.optimize import isotonic_regression

    gaps = [_apart(one, other) for one, other in pairwise(row.items)]
    offsets = list(accumulate(gaps, initial=0.0))
    ideal = [wanted[item] - offset for item, offset in zip(row.items, offsets, strict=True)]
    if ideal:
        found = isotonic_regression(ideal).x
        middle.update({item: float(x) + o for item, x, o in zip(row.items, found, offsets, strict=True)})


def _apart(one: object, other: object) -> float:
    lanes = isinstance(one, tuple) and isinstance(other, tuple)
    return (_width(one) + _width(other)) / 2 + (0 if lanes else ACROSS)


def _width(item: object) -> float:
    return WIDTH if isinstance(item, str) else LANE


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A curve from below the first box through the places in between to above the last."""
    (x, y), steps = points[0], [f"M{points[0][0]:.1f} {points[0][1] + HEIGHT:.0f}"]
    for at, (to_x, to_y) in enumerate(points[1:], 1):
        start, end = y + HEIGHT, to_y
        half = (start + end) / 2
        steps.append(f"C{x:.1f} {half:.0f} {to_x:.1f} {half:.0f} {to_x:.1f} {end:.0f}")
        if at < len(points) - 1:
            steps.append(f"V{to_y + HEIGHT:.0f}")
        x, y = to_x, to_y
    return " ".join(steps)
