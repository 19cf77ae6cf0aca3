"""A run as plain data, for pages that show several of them side by side."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class PastRun(BaseModel):
    """What is known of a finished run without its artifacts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    made: str = ""
    """Day on which it began (YYYY-MM-DD)."""
    method: str = ""
    gate: str = "none"
    """passed, failed or none."""
    models: dict[str, dict[str, float]]
    """Metrics of the dense model and of the last one, in this order, by their names."""
    config: dict[str, Any] = {}
    """Its settings under dotted names."""

    @property
    def dense(self) -> dict[str, float]:
        """Metrics of the dense model."""
        return next(iter(self.models.values()))

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last model."""
        return list(self.models.values())[-1]
