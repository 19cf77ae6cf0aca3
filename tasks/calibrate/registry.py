"""Calibration methods by name: `(job, inputs, progress) -> Samples`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import CalibrateConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from resprout.tasks.calibrate.samples import Samples

METHODS: Registry[Callable[[Job[CalibrateConfig], Mapping[str, Path], Progress], Samples]] = Registry(
    "calibration method"
)
METHODS.add(
    "random",
    "resprout.tasks.calibrate.random_windows:draw",
    "windows of the text drawn at random",
)
METHODS.add(
    "cola",
    "resprout.tasks.calibrate.cola:draw",
    "windows nearest to the centres of k-means in the model's activation space",
    "COLA, arXiv 2510.10618",
)
METHODS.add(
    "self_generated",
    "resprout.tasks.calibrate.self_generated:draw",
    "text that the dense model writes itself",
    "arXiv 2410.17711",
)


def modules(config: Any) -> list[str]:
    """Modules of the method that a calibrate section selects."""
    return [METHODS.entry(config.method).module]
