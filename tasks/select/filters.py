"""Rows that no method should choose from: near repeats of others, and what the evaluation asks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import FilterConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.select.json_files import write_json
from resprout.tasks.select.rows import FILE, rows_by_id

LEFT_OUT = "left_out.jsonl"
TASK = "task_"
"""Begins the roles of what models are asked."""
NEAR, CONTAMINATED = "near_duplicate_rows", "contaminated_rows"
"""Metrics: how many rows each filter took."""


def write(config: FilterConfig, inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write rows.jsonl with the rows that stay, left_out.jsonl with the others and why, and metrics.json.

    Rows come in the order of their ids, so that it does not depend on the file's order which of two stays.

    Raises:
        BadInput: not one row stays.
    """
    rows = rows_by_id(*(inputs[role] / FILE for role in ("rows", "prepared") if role in inputs))
    reasons = dict[int, str]()
    counts = Counter[str](dict.fromkeys((NEAR, CONTAMINATED), 0))
    if config.contaminated_words is not None:
        judged = JudgedText(evaluation_texts(inputs), config.contaminated_words)
        for number, row in enumerate(rows):
            if (place := judged.shared_with(_text(row))) is not None:
                reasons[number] = f"shares {config.contaminated_words} words in succession with {place}"
        counts[CONTAMINATED] = len(reasons)
    progress(1, 2, "filters")
    if config.near_duplicates:
        from resprout.tasks.select.duplicates import near_equal

        left = [number for number in range(len(rows)) if number not in reasons]
        for number, earlier in zip(left, near_equal(_text(rows[one]) for one in left), strict=True):
            if earlier is not None:
                reasons[number] = f"nearly the same as {rows[left[earlier]]['id']}"
                counts[NEAR] += 1
    with (
        (workdir / FILE).open("w", encoding="ascii") as kept,
        (workdir / LEFT_OUT).open("w", encoding="ascii") as out,
    ):
        for number, row in enumerate(rows):
            if number not in reasons:
                kept.write(json.dumps(row, sort_keys=True) + "\n")
            else:
                reason = {"id": row["id"], "reason": reasons[number]}
                out.write(json.dumps(reason, sort_keys=True) + "\n")
    counts["rows"] = len(rows) - len(reasons)
    if not counts["rows"]:
        raise BadInput(
            f"of {len(rows)} rows of select.pool not one is left: {counts[NEAR]} nearly repeat others "
            f"(select.filter.near_duplicates), {counts[CONTAMINATED]} share {config.contaminated_words} "
            "words in succession with what is evaluated (select.filter.contaminated_words); add rows, or "
            "change the filter"
        )
    write_json(workdir / "metrics.json", dict(counts))
    progress(2, 2, "filters")


class JudgedText:
    """Runs of words of the text and the tasks that models are judged on, each with where it stands."""

    def __init__(self, texts: Iterable[tuple[str, str]], words: int) -> None:
        self.words = words
        self._found = dict[bytes, str]()
        for place, text in texts:
            for run in self._runs(text):
                self._found.setdefault(run, place)

    def shared_with(self, text: str) -> str | None:
        """Where a run of words of the text stands too; None where none does."""
        return next((self._found[run] for run in self._runs(text) if run in self._found), None)

    def _runs(self, text: str) -> Iterator[bytes]:
        found = re.findall(r"\w+", text.lower())
        for start in range(len(found) - self.words + 1):
            yield blake2b(" ".join(found[start : start + self.words]).encode(), digest_size=8).digest()


def evaluation_texts(inputs: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """All that models are judged on: in words where it stands, and the text."""
    if "text" in inputs:
        for row in _lines(inputs["text"] / "text.jsonl"):
            yield "the text of evaluate", row["text"]
    for role in sorted(role for role in inputs if role.startswith(TASK)):
        for row in _lines(inputs[role] / FILE):
            yield f"the task {role.removeprefix(TASK)}", "\n".join(_strings(row))


def left_out(folder: Path) -> dict[str, str]:
    """Why each row of the pool was filtered out, by its id; empty for rows that no filter went through."""
    path = folder / LEFT_OUT
    return {row["id"]: row["reason"] for row in _lines(path)} if path.is_file() else {}


def counted(folder: Path) -> dict[str, int]:
    """How many rows each filter took; empty for rows that no filter went through."""
    if not (folder / LEFT_OUT).is_file():
        return {}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: metrics[name] for name in (NEAR, CONTAMINATED)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value, in their order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _text(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row.get(column) or "") for column in ("instruction", "input", "output"))
