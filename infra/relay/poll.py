"""Reconciling: the registry is looked at now and then for what no webhook told.

MLflow gives a delivery up after some tries, sends none for changes made straight in its database, and dates
no change of an alias or a tag. So what it holds is compared with what it held.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from resprout.configs.errors import Transient
from resprout.configs.infrastructure import without_credentials
from resprout.configs.rules import Ready, Rule
from resprout.infra.relay.decide import BACKFILL, fits
from resprout.infra.relay.delivery import Delivery
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import Look, Outbox, Seen
from resprout.infra.relay.registry import Registry, Version
from resprout.infra.relay.starter import Starter
from resprout.infra.relay.tables import said

log = logging.getLogger("resprout.relay")


class Poll:
    """Looks at the registry; `once` is one look."""

    def __init__(self, rules: Sequence[Ready], outbox: Outbox, registry: Registry) -> None:
        self.rules = [ready.rule for ready in rules]
        self.outbox = outbox
        self.registry = registry

    def once(self) -> int:
        """How many deliveries it put into the outbox; raises Transient where the registry does not answer.

        The first look at a registry, and that at a model which no rule was for before, is where things begin:
        it starts nothing but what a rule backfills. All that happens to a model which is made later starts.
        """
        marks, models, known = self.outbox.marked(), self.outbox.models(), self.outbox.seen()
        registry = f"registry {self.registry.shown_uri}"
        begun = registry in marks
        looks: list[Look] = []
        changes: list[Seen] = []
        found: list[Delivery] = []
        done = [] if begun else [registry]
        for model in self.registry.models():
            rules = [rule for rule in self.rules if fits(rule, model.name)]
            before, look = models.get(model.name), Look(model.name, model.created, bool(rules))
            # What no rule can be for may be what no database can keep either.
            if look != before and model.name.isprintable():
                looks.append(look)
            if not rules:
                continue
            new = begun and (before is None or before.created != model.created)
            follows = new or (begun and before is not None and before.watched)
            versions = self.registry.versions(model)
            for version in versions:
                last = known.get((version.name, version.version))
                if last is not None and last.created != version.created:
                    last = None
                now = _seen(version, last)
                if now != last:
                    changes.append(now)
                    found += [_delivery(kind, now) for kind in _happened(last, now)] if follows else []
            for rule in rules:
                mark = f"backfill {rule.name} {model.name} {model.created}"
                if rule.backfill and mark not in marks:
                    done.append(mark)
                    if not new:
                        found += [_backfill(rule, version) for version in versions]
        return self.outbox.learn(looks, changes, found, done) if looks or changes or found or done else 0


def _seen(version: Version, before: Seen | None) -> Seen:
    """The version as it is now; its revision is another where it changed."""
    aliases = json.dumps(version.aliases)
    tags = json.dumps(dict(version.tags), sort_keys=True)
    if before is not None and (before.aliases, before.tags) == (aliases, tags):
        return before
    revision = before.revision + 1 if before else 0
    return Seen(version.name, version.version, version.created, aliases, tags, revision)


def _happened(before: Seen | None, now: Seen) -> list[str]:
    """What a webhook would have told of."""
    kinds = [] if before else ["created"]
    had = set(json.loads(before.aliases)) if before else set()
    if set(json.loads(now.aliases)) - had:
        kinds.append("alias")
    tags = json.loads(before.tags) if before else {}
    if before and any(tags.get(name) != value for name, value in json.loads(now.tags).items()):
        kinds.append("tag")
    return kinds


def _delivery(kind: str, now: Seen) -> Delivery:
    """The same for all relays that see the same change."""
    identity = f"poll:{kind}:{now.name}:{now.version}:{now.created}:{now.revision}"
    return Delivery(identity, kind, now.name, now.version)


def _backfill(rule: Rule, version: Version) -> Delivery:
    identity = f"backfill:{rule.name}:{version.name}:{version.version}:{version.created}"
    return Delivery(identity, BACKFILL, version.name, version.version)


class PollThread(threading.Thread):
    """Looks for as long as the relay lives, at the registry and at how Prefect's runs are."""

    def __init__(self, poll: Poll, starter: Starter, seconds: float, metrics: Metrics) -> None:
        super().__init__(name="relay-poll", daemon=True)
        self.poll, self.starter, self.seconds, self.metrics = poll, starter, seconds, metrics
        self._stopping = threading.Event()
        self._failing = False

    def end(self) -> None:
        """Have it end after the look that is under way."""
        self._stopping.set()

    def stop(self) -> None:
        """`end`, and wait for it."""
        self.end()
        self.join()

    def run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                found = self.poll.once()
            except Exception as error:
                self._fault(error)
            else:
                self.metrics.poll_seconds.set(time.monotonic() - began)
                self.metrics.polled.set(time.time())
                self._failing = False
                if found:
                    log.info(
                        "a look found %d changes; what a webhook told of too starts nothing twice", found
                    )
            try:
                self.metrics.show_runs(self.starter.runs())
            except Exception as error:
                # The hand-over says it where Prefect does not answer; whatever it is, the looking goes on.
                self.metrics.failures.labels("runs").inc()
                log.debug("Prefect's runs were not counted (%s)", type(error).__name__)
            self._stopping.wait(self.seconds)

    def _fault(self, error: Exception) -> None:
        """Say once what is wrong; a fault of ours must not end the looking either."""
        self.metrics.failures.labels("poll").inc()
        if not self._failing:
            what = (
                said(error) if isinstance(error, SQLAlchemyError) else without_credentials(str(error))[:300]
            )
            kind = "" if isinstance(error, Transient) else f"{type(error).__name__}: "
            log.error("the registry could not be looked at (%s%s); it is tried again", kind, what)
        self._failing = True
