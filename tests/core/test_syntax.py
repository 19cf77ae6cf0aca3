"""Files that several threads parse at once."""

from __future__ import annotations

import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resprout.tasks.core.syntax import parse

TASKS = Path(__file__).resolve().parents[2] / "tasks"


def test_threads_parse_at_once() -> None:
    def yield_to_others(phase: str, info: dict[str, int]) -> None:
        time.sleep(0.0001)

    files = sorted(TASKS.rglob("*.py"))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    # A finalizer that runs Python code lets another thread go on in the middle of a tree.
    gc.callbacks.append(yield_to_others)
    try:
        with ThreadPoolExecutor(4) as threads:
            trees = [*threads.map(lambda turn: [parse(file) for file in files], range(4))]
    finally:
        gc.callbacks.remove(yield_to_others)
        sys.setswitchinterval(interval)
    assert all(len(one) == len(files) for one in trees)
