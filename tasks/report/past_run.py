"""A run as plain data, for pages that show several of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from resprout.configs.result import ShippedResult, VerdictResult
from resprout.tasks.quantize.names import DENSE, base_of
from resprout.tasks.report.table import Metrics, speeds_of


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
    """Metrics of the dense model and of the last one, or of what ships, in this order, by their names."""
    config: dict[str, Any] = {}
    """Its settings under dotted names."""
    verdict: VerdictResult | None = None
    """That of its report; None where it is to be found anew."""

    @property
    def dense(self) -> dict[str, float]:
        """Metrics of the dense model."""
        return next(iter(self.models.values()))

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last model."""
        return list(self.models.values())[-1]


def as_shipped(
    models: Mapping[str, Metrics], files: Mapping[str, Metrics], ships: ShippedResult | None
) -> dict[str, dict[str, float]]:
    """Return the metrics of the dense model and of what ships, with the bytes of their files.

    Of a file that another program serves the speeds are in that program, also those of the dense model; there
    are none where no file of the dense model was timed in it. None in `ships`: the models as they are.
    """
    last = list(models)[-1]
    dense, final = dict(models[DENSE]), dict(models[last])
    if ships is None:
        return {DENSE: dense, last: final}
    if ships.format in files:
        last, final = ships.format, dict(files[ships.format])
        base = base_of(ships.format, files)
        timed = files[base] if base is not None and base != DENSE else {}
        dense = {name: value for name, value in dense.items() if name not in speeds_of(dense)}
        dense |= {name: timed[name] for name in speeds_of(timed)}
    return {DENSE: {**dense, "bytes": ships.source_bytes}, last: {**final, "bytes": ships.bytes}}
