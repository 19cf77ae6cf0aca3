"""Scores of a few items as stage evaluate leaves them, so that losses can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def scores(folder: Path, answers: dict[str, str], cut: float) -> Path:
    """Scores of tasks of which each item is right (R), wrong (w), or half right (h)."""
    folder.mkdir()
    value = {"R": 1.0, "w": 0.0, "h": 0.5}
    about = {
        name: {
            "capability": "maths" if name in "ab" else "facts",
            "headline": f"{name}_acc",
            "items": len(one),
        }
        for name, one in answers.items()
    }
    right = {f"{name}_acc": [value[x] for x in one] for name, one in answers.items()}
    rows: list[dict[str, Any]] = [
        {
            "task": name,
            "item": at,
            "score": value[x],
            "prompt": f"{name}{at}?",
            "target": "t",
            "answer": x * 3,
        }
        for name, one in answers.items()
        for at, x in enumerate(one)
    ]
    (folder / "details.json").write_text(json.dumps({"tasks": about}))
    (folder / "samples.json").write_text(json.dumps({"windows": [], "right": right}))
    (folder / "metrics.json").write_text(json.dumps({"a_cut": cut, "b_cut": 0.0}))
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
