"""Processor, memory, disk, network and GPU use of a run, as MLflow's own monitor writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resprout.infra.mlflow.tracking import Tracker


@contextmanager
def system_metrics(tracker: Tracker, run_id: str) -> Iterator[None]:
    """Write the use of this machine into the run as long as the block lasts, a value each ten seconds.

    MLflow's variable MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets another pause. NVIDIA GPUs are read by the
    package nvidia-ml-py (the extra `gpu`), and left out without it.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=tracker.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
