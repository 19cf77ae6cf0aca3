"""Cost of a piece of work: wall-clock and processor seconds, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from resprout.tasks.core.malloc_tuning import give_back_freed_memory

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
_open: list[Cost] = []
_shared: set[int] = set()
RESET_PEAK = "5"
"""Value for Linux's clear_refs that resets VmHWM to the process's present memory."""


@dataclass(eq=False)
class Cost:
    """Seconds on the clock, processor seconds of all threads, and bytes of memory at the peak.

    `peak_memory_bytes` is as of `peak_memory`; None where the system cannot say it for a part of a process.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None

    def metrics(self) -> dict[str, float]:
        """As a stage's metrics."""
        found = {"stage_seconds": self.seconds, "stage_cpu_seconds": self.cpu_seconds}
        if self.peak_memory_bytes is not None:
            found["stage_peak_memory_mb"] = self.peak_memory_bytes / 1e6
        return found


def total(spent: Sequence[Cost]) -> Cost | None:
    """The cost of all tries together; None where nothing was done."""
    if not spent:
        return None
    peaks = [cost.peak_memory_bytes for cost in spent if cost.peak_memory_bytes is not None]
    return Cost(
        sum(cost.seconds for cost in spent), sum(cost.cpu_seconds for cost in spent), max(peaks, default=None)
    )


@contextmanager
def metered(device: str) -> Iterator[Cost]:
    """The cost of the work inside, filled in at its end, however it ends.

    Peaks and processor seconds are the process's: a peak that another meter reset meanwhile is None.
    """
    cost = Cost()
    _open.append(cost)
    _shared.update(map(id, _open if len(_open) > 1 else ()))
    resets = _reset_peak(device)
    began, worked = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds, cost.cpu_seconds = time.perf_counter() - began, time.process_time() - worked
        alone = id(cost) not in _shared
        cost.peak_memory_bytes = peak_memory(device) if resets and alone else None
        _shared.discard(id(cost))
        _open.remove(cost)


def peak_memory(device: str) -> int:
    """Bytes: on CUDA the most that tensors held at a time, else the largest resident set of this process."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    if STATUS.is_file():
        # Linux's ru_maxrss also covers the process that started this one; VmHWM, in KiB, does not.
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    # macOS counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak(device: str) -> bool:
    """Let `peak_memory` begin again; False where it cannot."""
    if device.startswith("cuda"):
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return False
        torch.cuda.reset_peak_memory_stats()
        return True
    # What was freed before is no part of what is held now.
    give_back_freed_memory()
    with suppress(OSError):
        CLEAR_REFS.write_text(RESET_PEAK)
        return True
    return False
