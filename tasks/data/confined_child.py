"""Child process: calls a function of ours on items, within limits. Run with `python -I -m`.

Reads lines of JSON: first what the function is made from, then batches of items; answers each line by one.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

MEMORY_BYTES = 4 << 30
MOST_CHARACTERS = 1 << 20
"""Of a result beyond ten times what its item holds; system prompts in use have a few thousand."""
TAG = ""
"""The only key of a mapping that stands for a value which JSON does not have: [name of its type, text]."""
TYPES: Mapping[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (
        timedelta,
        lambda value: f"{value.days} {value.seconds} {value.microseconds}",
        lambda text: timedelta(*map(int, text.split())),
    ),
    "Decimal": (Decimal, str, Decimal),
    "UUID": (UUID, str, UUID),
    "bytes": (bytes, lambda value: str(value, "latin-1"), lambda text: text.encode("latin-1")),
}
"""Types of a table's cells by name, with the functions that write one as text and read it back."""


def main() -> None:
    """Answer batches of items by the function that the command line names, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer
    make = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    call = make
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if asked["tagged"]:
            asked = json.loads(line, object_hook=_untagged)
        _limit(asked["seconds"])
        if call is make:
            try:
                call, answer = make(asked["items"][0]), "[[0,null]]"
            except Exception as error:
                answer = f"[{_fault(error)}]"
        else:
            answer = f"[{','.join(_answered(call, item) for item in asked['items'])}]"
        answers.write(answer + "\n")
        answers.flush()


def _answered(call: Callable[[Any], Any], item: Any) -> str:
    """The result as JSON [0, result], or what was raised as [1, type, sentence]."""
    try:
        found = json.dumps(call(item))
        if len(found) > MOST_CHARACTERS:
            held = len(json.dumps(item, default=str))
            if len(found) > 10 * held + MOST_CHARACTERS:
                raise ValueError(f"it makes {len(found):,} characters of a row of {held:,}")
    except Exception as error:
        # Whatever a template or a parser does wrong: jinja2's errors, and any error of Python inside of it.
        return _fault(error)
    return f"[0,{found}]"


def _fault(error: Exception) -> str:
    said = " ".join(str(error)[:2000].split())
    if isinstance(error, MemoryError):
        said = f"it takes more than {MEMORY_BYTES >> 30} GiB of memory"
    return json.dumps([1, type(error).__name__, said])


def _untagged(found: dict[str, Any]) -> Any:
    """The value that a mapping stands for, which may be itself."""
    match found:
        case {"": [str() as name, str() as text]} if len(found) == 1 and name in TYPES:
            return TYPES[name][2](text)
    return found


def _limit(seconds: int) -> None:
    used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, hard))


if __name__ == "__main__":
    main()
