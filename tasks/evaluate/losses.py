"""What a model lost against the dense one, by capability and by task, and which items changed sides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.tasks.evaluate.drop import Drop, drop_of
from resprout.tasks.evaluate.paired import CUT, FILE

ITEMS = "items.jsonl"
LOST, WON = "lost", "won"


@dataclass(frozen=True)
class Loss:
    """The drop over the items of some tasks together, and the shares of written answers that were cut.

    The shares are the dense model's and the other's; None where answers are chosen, not written.
    """

    tasks: tuple[str, ...]
    drop: Drop
    cut: tuple[float, float] | None = None


def losses(dense: Path, other: Path) -> tuple[dict[str, Loss], dict[str, Loss]]:
    """Losses by capability and by task, from the folders of both models' scores; each item counts once.

    Of a task the metric counts that its details name.
    """
    details = _json(other / "details.json").get("tasks", {})
    if not details or not all((folder / FILE).is_file() for folder in (dense, other)):
        return {}, {}
    ours, theirs = (_json(folder / FILE)["right"] for folder in (dense, other))
    metrics = [_json(folder / "metrics.json") for folder in (dense, other)]
    by_capability: dict[str, list[str]] = {}
    for task, about in sorted(details.items()):
        if about["headline"] in ours:
            by_capability.setdefault(about["capability"], []).append(task)

    def loss(tasks: list[str]) -> Loss:
        names = [details[task]["headline"] for task in tasks]
        drop = drop_of([x for name in names for x in ours[name]], [x for name in names for x in theirs[name]])
        written = [(task, details[task]["items"]) for task in tasks if f"{task}{CUT}" in metrics[1]]
        items = sum(count for _, count in written)
        shares = [
            sum(one[f"{task}{CUT}"] * count for task, count in written) / items for one in metrics if items
        ]
        return Loss(tuple(tasks), drop, (shares[0], shares[1]) if shares else None)

    return (
        {name: loss(tasks) for name, tasks in sorted(by_capability.items())},
        {task: loss([task]) for tasks in by_capability.values() for task in tasks},
    )


def flips(dense: Path, other: Path) -> Iterator[dict[str, Any]]:
    """The items on which one model is better, with both answers, lost ones first."""
    details = _json(other / "details.json").get("tasks", {})
    if not all((folder / ITEMS).is_file() for folder in (dense, other)):
        return
    known = {(row["task"], row["item"]): row for row in _rows(dense)}
    found = []
    for row in _rows(other):
        before = known.get((row["task"], row["item"]))
        if before is not None and before["score"] != row["score"]:
            about = {
                "capability": details[row["task"]]["capability"],
                "task": row["task"],
                "item": row["item"],
            }
            kind = LOST if row["score"] < before["score"] else WON
            answers = {"dense": before["answer"], "other": row["answer"]}
            scores = {"dense_score": before["score"], "other_score": row["score"]}
            cut = {"cut": row.get("cut", False)}
            asked = {"prompt": row["prompt"], "target": row["target"]}
            found.append({"kind": kind, **about, **asked, **answers, **scores, **cut})
    yield from sorted(found, key=lambda one: (one["kind"], one["capability"], one["task"], one["item"]))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / ITEMS).open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
