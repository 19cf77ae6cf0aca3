"""Rows that no method should choose from: near repeats, what the evaluation asks, what the model is for."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import BadInput
from resprout.configs.schema import FilterConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.data.words import words
from resprout.tasks.select.forms import FORM_ROWS, FORM_SHARE, forms_among
from resprout.tasks.select.json_files import write_json
from resprout.tasks.select.rows import FILE, Origin, rows_by_id

LEFT_OUT, WARNINGS = "left_out.jsonl", "warnings.json"
COLUMNS = ("instruction", "input", "output")
TASK = "task_"
"""Begins the roles of what models are asked."""
NEAR, CONTAMINATED, TARGETS = "near_duplicate_rows", "contaminated_rows", "capability_rows"
"""Metrics: how many rows each filter took."""
MANY = 0.2
"""Share of the pool above which it is said that so much was left out."""


def write(config: FilterConfig, inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write rows.jsonl with the rows that stay, left_out.jsonl with the others and why, and metrics.json.

    Rows come in the order of their ids, so that it does not depend on the file's order which of two stays.
    In warnings.json stands what people should look at.

    Raises:
        BadInput: not one row stays.
    """
    rows = rows_by_id(*(inputs[role] / FILE for role in ("rows", "prepared") if role in inputs))
    reasons, warnings = dict[int, str](), list[str]()
    causes, counts = Counter[str](), Counter[str](dict.fromkeys((NEAR, CONTAMINATED, TARGETS), 0))

    def leave_out(number: int, metric: str, reason: str, cause: str) -> None:
        reasons[number] = reason
        counts[metric] += 1
        causes[cause] += 1

    if "targets" in inputs:
        wanted = {_same(row) for row in rows_by_id(inputs["targets"] / FILE)}
        for number, row in enumerate(rows):
            if _same(row) in wanted:
                cause = "are rows of select.capabilities, none of which is trained on"
                leave_out(number, TARGETS, "a row of select.capabilities", cause)
    if config.contaminated_words is not None:
        words = f"{config.contaminated_words} words in succession with"
        judged = JudgedText(evaluation_texts(inputs), config.contaminated_words)
        left = [number for number in range(len(rows)) if number not in reasons]
        found = {number: one for number in left if len((one := judged.shared_with(_text(rows[number]))).runs)}
        forms = forms_among([one.runs for one in found.values()], len(rows))
        for number, shared in found.items():
            if len(own := shared.beside(forms, config.contaminated_words)):
                place = judged.place(own[0])
                cause = f"share {words} {place} (select.filter.contaminated_words)"
                leave_out(number, CONTAMINATED, f"shares {words} {place}", cause)
        if kept := len(found) - counts[CONTAMINATED]:
            warnings.append(
                f"{kept} of {len(rows)} rows share {words} {judged.place(forms[0])} and stay: words that "
                f"{FORM_ROWS} rows and more than {100 * FORM_SHARE:g} % of all have in common are their form"
            )
    progress(1, 2, "filters")
    if config.near_duplicates:
        from resprout.tasks.select.duplicates import near_equal, same_answer

        left = [number for number in range(len(rows)) if number not in reasons]

        def alike(place: int, earlier: int) -> bool:
            return same_answer(rows[left[place]], rows[left[earlier]])

        found_near = near_equal((_text(rows[number]) for number in left), alike)
        for number, earlier in zip(left, found_near, strict=True):
            if earlier is not None:
                cause = "nearly repeat others (select.filter.near_duplicates)"
                leave_out(number, NEAR, f"nearly the same as {rows[left[earlier]]['id']}", cause)
    with (
        (workdir / FILE).open("w", encoding="ascii") as kept_file,
        (workdir / LEFT_OUT).open("w", encoding="ascii") as out,
    ):
        for number, row in enumerate(rows):
            if number not in reasons:
                kept_file.write(json.dumps(row, sort_keys=True) + "\n")
            else:
                reason = {"id": row["id"], "reason": reasons[number], **Origin.of(row)._asdict()}
                out.write(json.dumps(reason, sort_keys=True) + "\n")
    counts["rows"] = len(rows) - len(reasons)
    if not counts["rows"]:
        raise BadInput(
            f"of {len(rows)} rows of the pool not one is left: "
            f"{', '.join(f'{count} {cause}' for cause, count in causes.most_common())}; add rows, or change "
            "the filter"
        )
    if len(reasons) > MANY * len(rows):
        cause, count = causes.most_common(1)[0]
        warnings.append(
            f"{len(reasons)} of {len(rows)} rows of the pool were left out before the selection; most "
            f"common: {count} {cause}"
        )
    write_json(workdir / WARNINGS, warnings)
    write_json(workdir / "metrics.json", dict(counts))
    progress(2, 2, "filters")


class Shared(NamedTuple):
    """The runs of words of a row that what is judged holds too: where they begin, and their numbers there."""

    begins: NDArray[np.int64]
    runs: NDArray[np.int64]

    def beside(self, forms: NDArray[np.int64], words: int) -> NDArray[np.int64]:
        """The runs, of so many words, none of which stands in a form."""
        is_form = np.isin(self.runs, forms)
        own, theirs = self.begins[~is_form], self.begins[is_form]
        apart = (np.abs(own[:, None] - theirs) >= words).all(1)
        return self.runs[~is_form][apart]


class JudgedText:
    """Runs of words of the text and the tasks that models are judged on: ten bytes each.

    All of the text counts, also what a limit of `evaluate` does not let models see: limits change.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], words: int) -> None:
        self.words = words
        self._places, ends, runs = list[str](), list[int](), array("Q")
        for place, text in texts:
            if self._places[-1:] != [place]:
                self._places.append(place)
                ends.append(0)
            runs.frombytes(self._runs(text).tobytes())
            ends[-1] = len(runs)
        self._known, first = np.unique(np.asarray(runs), return_index=True)
        self._of = np.searchsorted(ends, first, side="right").astype(np.uint16)

    def shared_with(self, text: str) -> Shared:
        """The runs of words that stand in the text too."""
        runs = self._runs(text)
        found = np.searchsorted(self._known, runs)
        (begins,) = np.nonzero(found < len(self._known))
        begins = begins[self._known[found[begins]] == runs[begins]]
        return Shared(begins, found[begins])

    def place(self, run: int) -> str:
        """Where a run of this number stands."""
        return self._places[self._of[run]]

    def _runs(self, text: str) -> NDArray[np.uint64]:
        found = words(text.lower())
        digests = (
            blake2b(" ".join(found[start : start + self.words]).encode(), digest_size=8).digest()
            for start in range(len(found) - self.words + 1)
        )
        return np.frombuffer(b"".join(digests), dtype="<u8")


def evaluation_texts(inputs: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """All that models are judged on: in words where it stands, and the text."""
    if "text" in inputs:
        for row in _lines(inputs["text"] / "text.jsonl"):
            yield "the text of evaluate", row["text"]
    for role in sorted(role for role in inputs if role.startswith(TASK)):
        for row in _lines(inputs[role] / FILE):
            yield f"the task {role.removeprefix(TASK)}", "\n".join(_strings(row))


def left_out(folder: Path) -> Iterator[dict[str, Any]]:
    """Each row of the pool that was filtered out, by id, reason and origin; none where no filter went."""
    path = folder / LEFT_OUT
    yield from _lines(path) if path.is_file() else ()


def counted(folder: Path) -> dict[str, int]:
    """How many rows each filter took; empty for rows that no filter went through."""
    if not (folder / LEFT_OUT).is_file():
        return {}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: metrics[name] for name in (NEAR, CONTAMINATED, TARGETS)}


def warned(folder: Path) -> list[str]:
    """What people should look at; nothing for rows that no filter went through."""
    path = folder / WARNINGS
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


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
    return "\n".join(str(row.get(column) or "") for column in COLUMNS)


def _same(row: Mapping[str, Any]) -> str:
    """A row's text, equal for rows that differ in case and spaces only."""
    return "\0".join(" ".join(str(row.get(column) or "").lower().split()) for column in COLUMNS)
