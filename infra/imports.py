"""Import large libraries in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Collect no garbage while libraries are imported, and look at none of what they made afterwards.

    The import of MLflow makes a million objects that stay, over which the collector would go again and again:
    it took a quarter of the time of a short command.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
