"""What Prometheus is told of the relay."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from resprout.infra.relay.outbox import FAILED, WAITING, Outbox

PREFIX = "resprout_relay"


class Metrics:
    """Counters of this process, and gauges that are read from the outbox when they are asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = self._counter("deliveries", "Deliveries by outcome.", "outcome")
        self.refused = self._counter("refused", "Refused deliveries by reason.", "reason")
        self.started = self._counter("runs_started", "Flow runs created by rule.", "rule")
        self.failures = self._counter("failures", "Faults of the hand-over and the poll.", "kind")
        self.poll_seconds = self._gauge("poll_seconds", "How long the last look at the registry took.")
        self.polled = self._gauge("last_poll_timestamp_seconds", "When the registry was last looked at.")
        self.oldest = self._gauge("oldest_unhandled_seconds", "Age of the oldest unhandled delivery.")
        self.waiting = self._gauge("waiting", "Deliveries that wait for a flow run.")
        self.failed = self._gauge("failed", "Deliveries that failed for good; see triggers status.")
        self.last_run = self._gauge("last_run_timestamp_seconds", "When the last flow run was created.")
        self.runs = Gauge(
            "resprout_flow_runs", "Runs of the flow by state.", ["state"], registry=self.registry
        )

    def show_runs(self, counts: Mapping[str, int]) -> None:
        """Set how many runs are in each state."""
        for state, count in counts.items():
            self.runs.labels(state).set(count)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, [label], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, registry=self.registry)

    def render(self, outbox: Outbox) -> bytes:
        """Prometheus's text; gauges of an outbox that does not answer are NaN."""
        try:
            counts, oldest = outbox.counts()
            last = outbox.last_start()
        except SQLAlchemyError:
            for gauge in (self.oldest, self.waiting, self.failed):
                gauge.set(math.nan)
        else:
            self.oldest.set(0.0 if oldest is None else max(0.0, time.time() - oldest))
            self.waiting.set(counts[WAITING])
            self.failed.set(counts[FAILED])
            self.last_run.set(last or 0.0)
        return generate_latest(self.registry)
