"""Malloc tuning: glibc keeps large freed blocks, so that passes layer by layer run faster.

Layer after layer takes tensors of the same sizes and frees them. glibc gives such blocks back to the
system at once, which fills each page of the next one with zeros again: of a forward pass of a small model
that is a fifth (tests/benchmarks/bench_malloc.py), and how much of it depends on what else is in memory, so
that times of layers and of models do not add up. A model that is read layer by layer, for which memory is
what counts, gives it back as ever.
"""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BYTES = 2**30
"""Freed blocks up to this size are kept, and as much at the end of the heap."""
GROWTH_BYTES = 2**26
"""The heap grows by at least this."""
OWN_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Prefixes of environment variables that choose or set an allocator."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3) by their numbers in malloc.h."""


def keep_freed_memory() -> bool:
    """Let glibc keep what this process frees; True where it does so now.

    Other allocators, and one that the environment has settings for, are left as they are.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(OWN_SETTINGS) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older releases refuse more than half of a thread's heap as the first.
    kept = mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_TOP_PAD, GROWTH_BYTES))


def give_back_freed_memory() -> None:
    """Return to the system what this process has freed and kept, where glibc keeps it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
