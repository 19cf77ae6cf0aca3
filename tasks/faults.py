"""Faults of the machine that any stage may meet, as sentences that say what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from resprout.configs.errors import ResproutError, StageFailed

FULL_DISK = ("no space left on device", "os error 28")
NO_MEMORY = ("out of memory", "can't allocate memory")


def as_sentence(error: BaseException, stage_name: str, home: Path) -> BaseException:
    """StageFailed for a full memory or disk, everything else as it is."""
    if isinstance(error, ResproutError) or not isinstance(error, Exception):
        return error
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return StageFailed(
            f"{stage_name} ran out of memory; use smaller batches or sequences in its section, a smaller "
            "dtype, or a machine with more memory; finished stages are kept"
        )
    # Libraries in other languages (safetensors) raise errors of their own that only quote the system's.
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or any(words in text for words in FULL_DISK):
        return StageFailed(
            f"the disk of {home} is full in {stage_name}; free space there and run again; finished stages "
            "are kept"
        )
    return error
