"""By how much two artifacts of the same stage differ, file by file, in terms of what a file holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.tasks.prune.plan import PLAN_FILE

ROWS = (".jsonl", ".txt", ".md")


@dataclass(frozen=True)
class Difference:
    """A file that is not the same in both, and in words how far the two lie apart."""

    path: str
    says: str


def compare(first: Path, second: Path) -> list[Difference]:
    """Differences between the files of two folders, sorted by path; none where all bytes are equal."""
    ours, theirs = _files(first), _files(second)
    found = []
    for path in sorted({*ours, *theirs}):
        if path not in theirs:
            found.append(Difference(path, "was made the first time only"))
        elif path not in ours:
            found.append(Difference(path, "was made the second time only"))
        elif ours[path].read_bytes() != theirs[path].read_bytes():
            found.append(Difference(path, _says(path, ours[path], theirs[path])))
    return found


def relative(first: float, second: float) -> float:
    """|first - second| over the larger of both magnitudes; 0 where they are equal, infinity for NaN."""
    if first == second:
        return 0.0
    apart = abs(first - second) / max(abs(first), abs(second))
    return apart if apart == apart else float("inf")


def leaves(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested JSON data under dotted names."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if items is None:
        yield name, data
        return
    for key, value in items:
        yield from leaves(value, f"{name}.{key}" if name else str(key))


def _says(path: str, first: Path, second: Path) -> str:
    try:
        if path.endswith(".safetensors"):
            return compare_tensors(first, second)
        if Path(path).name == PLAN_FILE:
            return _plans(json.loads(first.read_bytes()), json.loads(second.read_bytes()))
        if path.endswith(".json"):
            return _values(json.loads(first.read_bytes()), json.loads(second.read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        return f"cannot be read as what its name says ({type(error).__name__})"
    if path.endswith(ROWS):
        return _rows(first.read_bytes().split(b"\n"), second.read_bytes().split(b"\n"))
    return f"{first.stat().st_size} bytes then, {second.stat().st_size} bytes now, not the same"


def _plans(first: dict[str, Any], second: dict[str, Any]) -> str:
    """How many units only one of the plans keeps, and in which layers."""
    parts, layers = [], set()
    if len(first["layers"]) != len(second["layers"]):
        return f"{len(first['layers'])} layers then, {len(second['layers'])} now"
    for unit in ("ffn", "kv_groups"):
        differing = 0
        for index, (one, two) in enumerate(zip(first["layers"], second["layers"], strict=True)):
            apart = set(one[unit]) ^ set(two[unit])
            differing += len(apart)
            layers |= {index} if apart else set()
        if differing:
            parts.append(f"{differing} {unit} units that only one of both keeps")
    if not parts:
        return _values(first, second)
    return f"{' and '.join(parts)}, in layers {', '.join(map(str, sorted(layers)))}"


def _values(first: Any, second: Any) -> str:
    """How many values differ, and the largest difference."""
    ours, theirs = dict(leaves(first)), dict(leaves(second))
    apart = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    numbers = {
        name: relative(float(ours[name]), float(theirs[name]))
        for name in apart
        if _is_number(ours.get(name)) and _is_number(theirs.get(name))
    }
    summary = f"{len(apart)} of {len({*ours, *theirs})} values differ"
    if not numbers:
        return f"{summary}, the first is {apart[0]}" if apart else "the same values in another form"
    worst = max(numbers, key=lambda name: numbers[name])
    return (
        f"{summary}, at most by {100 * numbers[worst]:.3g} % ({worst}: {ours[worst]:.6g} then, "
        f"{theirs[worst]:.6g} now)"
    )


def _rows(first: list[bytes], second: list[bytes]) -> str:
    first, second = [row for row in first if row], [row for row in second if row]
    same = sum(one == two for one, two in zip(first, second, strict=False))
    if sorted(first) == sorted(second):
        return f"the same {len(first)} rows in another order"
    return f"{max(len(first), len(second)) - same} of {max(len(first), len(second))} rows differ"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def compare_tensors(first: Path, second: Path) -> str:
    """In words: tensors that are missing, of other shapes, or apart, and the largest differences.

    The relative difference of a tensor is its largest absolute difference over its largest magnitude.
    ValueError where a file is no safetensors file.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    parts: list[str] = []
    try:
        with safe_open(first, "pt") as ours, safe_open(second, "pt") as theirs:
            names, others = set(ours.keys()), set(theirs.keys())
            if lone := sorted(names ^ others):
                parts.append(f"{len(lone)} tensors are in one of both only, such as {lone[0]}")
            apart, shaped, most, most_relative, worst = 0, 0, 0.0, 0.0, ""
            for name in sorted(names & others):
                one, two = ours.get_tensor(name), theirs.get_tensor(name)
                if one.shape != two.shape or one.dtype != two.dtype:
                    shaped += 1
                    continue
                if torch.equal(one, two):
                    continue
                apart += 1
                wide, other = one.double(), two.double()
                absolute = float((wide - other).abs().max())
                relative = absolute / max(float(wide.abs().max()), float(other.abs().max()), 1e-300)
                most = max(most, absolute)
                if relative >= most_relative:
                    most_relative, worst = relative, name
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if shaped:
        parts.append(f"{shaped} tensors have other shapes or dtypes")
    if apart:
        parts.append(
            f"{apart} of {len(names & others)} tensors differ, at most by {most:.3g} absolute and "
            f"{most_relative:.3g} relative (in {worst})"
        )
    return ", ".join(parts) or "the same tensors, in another layout"
