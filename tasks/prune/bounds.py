"""Bounds of methods' own settings, checked when a method is made; imports no torch."""

from __future__ import annotations

import math

from resprout.configs.errors import BadInput


def require(method: str, low: float, high: float = math.inf, **settings: float) -> None:
    """Raise BadInput, which names the method, unless each setting is from `low` to `high`."""
    for name, value in settings.items():
        if not low <= value <= high or not math.isfinite(value):
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise BadInput(f"'{method}' has {name}: {value:g}; give {allowed}")
