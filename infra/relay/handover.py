"""From the outbox to Prefect: each delivery becomes the runs of the rules it is for, and only then is done.

Whatever dies in between, the row is still there and is handed over again: the same idempotency key gives the
same flow run, and `starts` keeps it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import without_credentials
from resprout.configs.rules import Ready
from resprout.infra.relay.decide import concerned, decide
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import FAILED, HANDLED, Outbox, Row
from resprout.infra.relay.own import own
from resprout.infra.relay.registry import Gone, Registry, Version
from resprout.infra.relay.starter import FLOW, Missing, Starter
from resprout.infra.relay.tables import said
from resprout.infra.store.store import ArtifactStore

AT_ONCE = 100
LEASE_SECONDS = 15.0
IDLE_SECONDS = 1.0
GATHER_SECONDS = 0.05
MOST_PAUSE_SECONDS = 15.0
MOST_LATER_SECONDS = 300.0
KEEP_SECONDS = 7 * 24 * 3600.0
KEEP_FAILED_SECONDS = 90 * 24 * 3600.0
PRUNE_SECONDS = 3600.0

log = logging.getLogger("resprout.relay")


@dataclass
class Handover:
    """What a hand-over works with; `once` is a pass over what is due."""

    rules: Sequence[Ready]
    outbox: Outbox
    registry: Registry
    starter: Starter
    store: ArtifactStore
    metrics: Metrics
    stopping: threading.Event = field(default_factory=threading.Event)
    pruned: float = 0.0

    def once(self) -> int:
        """How many rows were taken; raises Transient where a server does not answer, with all rows kept."""
        rows = self.outbox.take(AT_ONCE, LEASE_SECONDS)
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.name, row.version), []).append(row)
        wanted = []
        for group in groups.values():
            rules = concerned(self.rules, (row.kind for row in group), group[0].name)
            if rules:
                wanted.append((group, rules))
        none = {row.id for row in rows} - {row.id for group, _ in wanted for row in group}
        if none:
            self.outbox.finish(sorted(none), HANDLED, "no rule is for it")
        for index, (group, rules) in enumerate(wanted):
            behind = [row.id for left, _ in wanted[index:] for row in left]
            if self.stopping.is_set():
                self.outbox.release(behind)
                break
            try:
                self._group(group, rules)
            except Transient as fault:
                self.outbox.release(behind)
                self._fall_behind(group, str(fault))
                raise
            except SQLAlchemyError:
                raise
            except Exception as error:
                # A fault of ours with one version must not end the hand-over of all others.
                text = without_credentials(" ".join(str(error).split()))[:300]
                log.error("%s could not be handed over (%s: %s)", group[0].name, type(error).__name__, text)
                self.metrics.failures.labels("unexpected").inc()
                self._fall_behind(group, f"{type(error).__name__}: {text}")
        return len(rows)

    def _fall_behind(self, rows: list[Row], reason: str) -> None:
        """Rows that failed wait longer each time and come after the others, so that they hold up none."""
        seconds = min(MOST_PAUSE_SECONDS, IDLE_SECONDS * 2.0 ** min(rows[0].tries, 10))
        self.outbox.later([row.id for row in rows], seconds, reason)

    def prune(self) -> None:
        """Now and then forget what was done long ago; its delivery ids are refused by their time by then."""
        if time.monotonic() - self.pruned > PRUNE_SECONDS or not self.pruned:
            self.pruned = time.monotonic()
            now = time.time()
            self.outbox.prune(now - KEEP_SECONDS, now - KEEP_FAILED_SECONDS)

    def _group(self, rows: list[Row], rules: list[Ready]) -> None:
        """Hand over all that is told of one version."""
        ids = [row.id for row in rows]
        try:
            version = self.registry.version(rows[0].name, rows[0].version)
            trail = self.registry.trail(version)
        except Gone:
            self._fail(ids, "the registry holds no such version any more", rows[0])
            return
        if version.status == "PENDING_REGISTRATION":
            self._fall_behind(rows, "the registry is still making the version")
            return
        done, faults, missing = [], [], []
        for ready in rules:
            try:
                done.append(self._rule(ready, version, trail))
            except BadInput as fault:
                faults.append(f"rule {ready.rule.name}: {fault}")
            except Missing:
                missing.append(ready.rule.name)
        if missing:
            seconds = min(MOST_LATER_SECONDS, IDLE_SECONDS * 2.0 ** min(rows[0].tries + 2, 10))
            reason = f"Prefect has no deployment {FLOW}/{missing[0]}; run `resprout triggers apply`"
            if not rows[0].tries:
                log.warning("%s version %s waits: %s", version.name, version.version, reason)
            self.metrics.failures.labels("deployment_missing").inc()
            self.outbox.later(ids, seconds, reason)
        elif faults:
            self._fail(ids, "; ".join(faults), rows[0])
        else:
            self.outbox.finish(ids, HANDLED, "; ".join(done))
        for kind in () if missing else sorted({row.kind for row in rows}):
            self._tell(kind, version)

    def _rule(self, ready: Ready, version: Version, trail: Sequence[Version]) -> str:
        """Start a rule's run for a version, or say why not; BadInput where somebody should look at it."""
        rule = ready.rule
        known = self.outbox.started(rule.name, version)
        if known:
            return f"rule {rule.name}: flow run {known[-1]} was created before"
        decision = decide(ready, version, trail, lambda: own(trail, self.registry, self.store))
        if decision.fault:
            raise BadInput(decision.why)
        if not decision.starts:
            return f"rule {rule.name}: {decision.why}"
        run = self.starter.start(rule, version, decision.overrides)
        if self.outbox.note_start(rule.name, version, run):
            self.metrics.started.labels(rule.name).inc()
            log.info(
                "rule %s: %s version %s starts flow run %s", rule.name, version.name, version.version, run
            )
        return f"rule {rule.name}: flow run {run}"

    def _tell(self, kind: str, version: Version) -> None:
        try:
            self.starter.tell(kind, version)
        except Exception as error:
            # The runs are there; that an event is not changes nothing.
            log.debug("no event was emitted (%s)", type(error).__name__)

    def _fail(self, ids: list[int], reason: str, row: Row) -> None:
        log.warning("%s version %s starts nothing: %s", row.name, row.version, reason)
        self.metrics.failures.labels("version").inc()
        self.outbox.finish(ids, FAILED, reason)


class HandoverThread(threading.Thread):
    """Passes for as long as the relay lives; a server that does not answer is asked again, less often."""

    def __init__(self, handover: Handover) -> None:
        super().__init__(name="relay-handover", daemon=True)
        self.handover = handover
        self._wake = threading.Event()
        self._faults = 0

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    def end(self) -> None:
        """Have it end after what is being handed over."""
        self.handover.stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        self.join()

    def run(self) -> None:
        stopping = self.handover.stopping
        while not stopping.is_set():
            self._wake.clear()
            pause = self._pass()
            if pause:
                stopping.wait(pause)

    def _pass(self) -> float:
        """One pass; seconds to pause after a fault."""
        try:
            taken = self.handover.once()
            self.handover.prune()
        except (Transient, SQLAlchemyError) as error:
            if self.handover.stopping.is_set():
                return 0.0
            what = (
                str(error) if isinstance(error, Transient) else f"the outbox does not answer ({said(error)})"
            )
            return self._fault("server", f"{what}; deliveries are kept and handed over once it does")
        if self._faults:
            log.info("deliveries are handed over again")
        self._faults = 0
        if not taken and self._wake.wait(IDLE_SECONDS):
            # What arrives together is handed over together.
            return GATHER_SECONDS
        return 0.0

    def _fault(self, kind: str, sentence: str) -> float:
        self.handover.metrics.failures.labels(kind).inc()
        self._faults += 1
        if self._faults == 1:
            log.error("%s", sentence)
        return min(MOST_PAUSE_SECONDS, 0.5 * 2.0 ** min(self._faults, 10))
