"""Processor, memory, disk, network and GPU use of a run, as MLflow's own monitor writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from resprout.configs.errors import ResproutError
from resprout.infra.mlflow.tracking import STAGE

if TYPE_CHECKING:
    from resprout.infra.mlflow.tracking import Tracker

NAME = "system metrics"
"""Of the nested run."""


@contextmanager
def system_metrics(tracker: Tracker, run_id: str) -> Iterator[None]:
    """Write the use of this machine into a run nested in this one, a value each ten seconds of the block.

    MLflow's page shows the system metrics of a run above all others, which would hide what the run came to.
    MLflow's variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets another pause. NVIDIA GPUs are read by the
    package nvidia-ml-py (the extra `gpu`), and left out without it.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    nested = tracker.start(NAME, {STAGE: NAME}, parent=run_id)
    monitor = SystemMetricsMonitor(nested, tracking_uri=tracker.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        # A server that is away does not hide how the block ended; the run's next attempt ends what is open.
        with suppress(ResproutError):
            tracker.end(nested)
