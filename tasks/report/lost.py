"""The page's part on what was lost: a table by capability, and the items that changed sides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resprout.configs.result import LossResult
from resprout.tasks.evaluate.losses import Loss, flips, losses
from resprout.tasks.report.table import NONE, Row

FLIPS = "flips.jsonl"
"""File of the report that lists all of the items."""
SHOWN = 20
"""Items that the page itself shows."""
HEADS = ("items", "dense", "model", "lost", "interval of 95 %", "p", "items lost / won", "cut, dense / model")


def lost_of(dense: Path, model: Path) -> dict[str, LossResult]:
    """By capability what a model lost, from both models' scores."""
    return {name: _result(loss) for name, loss in losses(dense, model)[0].items()}


def lost_rows(lost: Mapping[str, LossResult]) -> list[Row]:
    """The rows of the table, by capability."""
    return [Row(_label(name, one), _cells(one)) for name, one in lost.items()]


def lost_part(dense: Path, name: str, model: Path) -> dict[str, Any] | None:
    """What the page shows of one model, called `name`; None where no task was evaluated."""
    lost = lost_of(dense, model)
    if not lost:
        return None
    found = list(flips(dense, model))
    return {"name": name, "rows": lost_rows(lost), "flips": _spread(found), "count": len(found)}


def write_flips(dense: Path, models: Mapping[str, Path], path: Path) -> None:
    """Write a line for each item on which a model and the dense one differ."""
    with path.open("w", encoding="utf-8") as file:
        for name, folder in models.items():
            for row in flips(dense, folder):
                file.write(json.dumps({"model": name, **row}, ensure_ascii=False) + "\n")


def _spread(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first items that were lost, or of fewer all and some that were won, of all capabilities in turn."""
    turns: dict[tuple[str, str], int] = {}

    def turn(one: Mapping[str, Any]) -> tuple[str, int]:
        place = (one["kind"], one["capability"])
        turns[place] = turns.get(place, 0) + 1
        return one["kind"], turns[place]

    return sorted(found, key=turn)[:SHOWN]


def _result(loss: Loss) -> LossResult:
    drop = loss.drop
    low, high = drop.interval
    cut = {} if loss.cut is None else {"dense_cut": loss.cut[0], "cut": loss.cut[1]}
    return LossResult(
        tasks=list(loss.tasks), items=drop.items, dense=drop.dense, model=drop.other, drop=drop.value,
        low=low, high=high, lost=drop.lost, won=drop.won, p=drop.p, **cut,
    )  # fmt: skip


def _label(name: str, one: LossResult) -> str:
    return name if one.tasks == [name] else f"{name} ({', '.join(one.tasks)})"


def _cells(one: LossResult) -> tuple[str, ...]:
    return tuple(_shown(one))


def _shown(one: LossResult) -> Iterator[str]:
    yield f"{one.items:,}"
    yield f"{one.dense:.3f}"
    yield f"{one.model:.3f}"
    yield f"{one.drop:+.3f}" if not one.low <= 0 <= one.high else "no difference"
    yield f"{one.low:+.3f} to {one.high:+.3f}"
    yield f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
    yield f"{one.lost} / {one.won}"
    yield NONE if one.cut is None or one.dense_cut is None else f"{one.dense_cut:.0%} / {one.cut:.0%}"
