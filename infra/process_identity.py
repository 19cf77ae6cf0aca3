"""Which process an id means, also after the id was given out again or the clock was set."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def system() -> str:
    """Boot and PID namespace of this process: equal only where process ids mean the same; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process with this id began, in ticks since the boot; None when there is none.

    A date would move with the machine's clock, which is set or jumps when the machine was suspended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # Fields stand behind the name, which may hold anything; the 22nd of proc_pid_stat(5) is this one.
    return int(stat.rpartition(")")[2].split()[19])
