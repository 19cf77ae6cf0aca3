"""Which process of which running system this is, so that a dead one on the same machine is known at once."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import psutil


@functools.cache
def system() -> str:
    """Boot and PID namespace of this process: equal only where process ids mean the same; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> float | None:
    """When the process with this id began, in seconds since the epoch; None when there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def has_died(where: str, pid: int, began: float) -> bool:
    """Whether a process that was noted with `system()` and `born()` is certainly gone."""
    if not where or where != system():
        return False
    now = born(pid)
    return now is None or abs(now - began) > 1.0
