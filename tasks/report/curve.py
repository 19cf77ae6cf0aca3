"""Small pictures for the report as inline SVG: a line over steps, bars over layers."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT, PAD = 640, 180, 34


def line(values: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """An SVG polyline through (x, y) points; empty where there are fewer than two."""
    if len(values) < 2:
        return ""
    xs, ys = [x for x, _ in values], [y for _, y in values]
    low, high = min(ys), max(ys)
    points = " ".join(
        f"{_at(x, min(xs), max(xs), PAD, WIDTH - PAD):.1f},{_at(y, low, high, HEIGHT - PAD, PAD):.1f}"
        for x, y in values
    )
    return _frame(
        f'<polyline fill="none" stroke="#2a6f4e" stroke-width="2" points="{points}"/>'
        f"{_text(4, PAD, f'{high:.3g}')}{_text(4, HEIGHT - PAD, f'{low:.3g}')}"
        f"{_text(PAD, HEIGHT - 8, f'{x_label} {xs[0]:g} to {xs[-1]:g}')}{_text(PAD, 14, y_label)}"
    )


def bars(before: Sequence[int], after: Sequence[int], y_label: str) -> str:
    """An SVG with one pair of bars a layer: the width before (pale) and after (dark)."""
    top = max(before, default=0)
    if not top:
        return ""
    step = (WIDTH - 2 * PAD) / len(before)
    shapes = []
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        x = PAD + layer * step
        for width, colour in ((old, "#cfe3d8"), (new, "#2a6f4e")):
            y = _at(width, 0, top, HEIGHT - PAD, PAD)
            shapes.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{HEIGHT - PAD - y:.1f}" '
                f'fill="{colour}"/>'
            )
    layers = f"layer 0 to {len(before) - 1}"
    labels = _text(4, PAD, str(top)) + _text(PAD, HEIGHT - 8, layers) + _text(PAD, 14, y_label)
    return _frame("".join(shapes) + labels)


def _at(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * ((value - low) / (high - low) if high > low else 0.5)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" font-size="11" fill="#444">{text}</text>'


def _frame(body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{body}</svg>'
