"""Compare the model registry with what each rule has seen and started, and start what is missing, once.

A look at a model reads its versions, aliases and tags, and compares them with the entries of each rule. What
is new to a rule that starts on it becomes a flow run; then the entry is written. A relay that dies in between
finds the same difference again, and the same key gives the same run. So nothing has to be kept of what is
still to be done: while Prefect or MLflow is down the difference stays, and the next look takes it up. A
webhook only makes the look come earlier.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import one_line
from resprout.configs.rules import LoadedRule, Rule, load_rules
from resprout.infra.prefect.flow_runs import FLOW, FlowRuns, NoAnswer, NoDeployment
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.decision import BACKFILL, aliases_for, decide, key_of, mismatch, own_export
from resprout.infra.triggers.model_registry import (
    ModelRegistry,
    NotRegistered,
    RegisteredModel,
    RegisteredVersion,
)
from resprout.infra.triggers.state import (
    FAILED,
    PAST,
    SEEN,
    STARTED,
    WAITING,
    LastSeen,
    TriggerState,
    database_fault,
    tags_of,
)

METRICS = "resprout_relay"
RULES_SECONDS = 5.0
"""Pause between two looks at the rules file."""
GATHER_SECONDS = 0.1
"""In which deliveries that come together are gathered."""
MOST_PAUSE_SECONDS = 15.0
MOST_WOKEN = 10_000
KEEP_FAILED_SECONDS = 90 * 24 * 3600.0

NO_VERSION = "the registry holds no such version any more"

log = logging.getLogger("resprout.relay")


class Metrics:
    """Counters of this process, and gauges that are read from the state when they are asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = self._counter("deliveries", "Deliveries by outcome.", "outcome")
        self.refused = self._counter("refused", "Refused deliveries by reason.", "reason")
        self.started = self._counter("runs_started", "Flow runs created by rule.", "rule")
        self.failures = self._counter("failures", "Faults of the relay by kind.", "kind")
        self.poll_seconds = self._gauge("poll_seconds", "How long the last look at the registry took.")
        self.polled = self._gauge("last_poll_timestamp_seconds", "When the registry was last read.")
        self.oldest = self._gauge("oldest_unhandled_seconds", "Age of the oldest change that waits.")
        self.waiting = self._gauge("waiting", "Versions and aliases that wait for a flow run.")
        self.failed = self._gauge("failed", "Versions and aliases that failed; see triggers status.")
        self.last_run = self._gauge("last_run_timestamp_seconds", "When the last flow run was created.")
        self.rules_invalid = self._gauge("rules_invalid", "1 while the rules file is wrong and not in force.")
        self.runs = Gauge(
            "resprout_flow_runs", "Runs of the flow by state.", ["state"], registry=self.registry
        )

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"{METRICS}_{name}", text, [label], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{METRICS}_{name}", text, registry=self.registry)

    def render(self, reconciler: Reconciler) -> bytes:
        """Prometheus's text; gauges of a database that does not answer are NaN."""
        try:
            counts = reconciler.state.counts()
            waiting = reconciler.state.newest(WAITING, 1)
            started = reconciler.state.newest(STARTED, 1)
        except SQLAlchemyError:
            for gauge in (self.oldest, self.waiting, self.failed):
                gauge.set(math.nan)
        else:
            since = [entry.at for entry in waiting] + list(reconciler.woken().values())
            self.oldest.set(max(0.0, time.time() - min(since)) if since else 0.0)
            self.waiting.set(counts[WAITING])
            self.failed.set(counts[FAILED])
            self.last_run.set(started[0].at if started else 0.0)
        return generate_latest(self.registry)


class WatchedRules:
    """The rules in a file, read again when it or a run config that it names changes."""

    def __init__(self, path: Path) -> None:
        self.path, self.fault = path.expanduser(), ""
        # Read before the rules are, so that a change in between is found.
        self._contents = self._latest = self._read(())
        self.rules = load_rules(self.path)

    def reload(self) -> bool:
        """Whether there are other rules now; a file with a `fault` leaves those that are in force."""
        contents = self._read(self.rules)
        # What is not yet as it was at the last call may still be being written.
        settled, self._latest = contents == self._latest, contents
        if not settled or (contents == self._contents and not self.fault):
            return False
        fault = ""
        try:
            rules = load_rules(self.path)
        except BadInput as error:
            rules, fault = self.rules, str(error)
        if self._read(self.rules) != contents:
            # Written while they were loaded, so what was loaded may be half a file.
            return False
        if fault:
            if fault != self.fault:
                log.error("the rules stay as they were, because what the file holds now is wrong: %s", fault)
            self.fault = fault
            return False
        changed, mended = rules != self.rules, bool(self.fault)
        self.rules, self.fault, self._contents = rules, "", contents
        if changed or mended:
            log.info("%s was read again and has %d rules", self.path, len(rules))
        return changed

    def _read(self, rules: tuple[LoadedRule, ...]) -> list[tuple[int, bytes]]:
        """When each file was written and what it holds: the same bytes written again are a change too."""
        contents = []
        for path in (self.path, *(loaded.path for loaded in rules)):
            with suppress(OSError):
                contents.append((path.stat().st_mtime_ns, path.read_bytes()))
        return contents


class Reconciler:
    """One registry and the rules of one file; `look` may be called by one thread at a time, `wake` by any."""

    def __init__(
        self,
        rules: WatchedRules,
        state: TriggerState,
        registry: ModelRegistry,
        runs: FlowRuns,
        store: ArtifactStore,
        poll_seconds: float = 60.0,
    ) -> None:
        self.rules, self.state, self.registry, self.runs, self.store = rules, state, registry, runs, store
        self.poll_seconds, self.metrics = poll_seconds, Metrics()
        self._known: dict[str, tuple[str, ...]] = {}
        self._woken: dict[str, float] = {}
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._stopping, self._tried = threading.Event(), threading.Event()
        self._next_look = 0.0
        self._failing: set[tuple[str, ...]] = set()
        """Models and versions at which the registry failed: they come last, and hold up no others."""
        self._postponed: dict[str, float] = {}
        self._blocked: dict[str, str] = {}
        """Why nothing can be started in this pass, by rule; by "" where Prefect does not answer."""
        self._thread = threading.Thread(target=self._run, name="relay-reconciler", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the version that is being handled."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()

    def fault(self) -> str | None:
        """Why the relay is of no use, or None."""
        if self._thread.ident and not self._thread.is_alive():
            return f"{self._thread.name} has stopped"
        return None if self._tried.is_set() else "the registry has not been read yet"

    def wake(self, name: str) -> None:
        """Look at a model now, if a rule is for it."""
        if any(loaded.rule.fits(name) for loaded in self.rules.rules):
            with self._lock:
                if len(self._woken) < MOST_WOKEN:
                    self._woken.setdefault(name, time.time())
                else:
                    self._next_look = 0.0
            self._wake.set()

    def woken(self) -> dict[str, float]:
        """The models that are due for a look, and since when."""
        with self._lock:
            return dict(self._woken)

    def is_due(self) -> bool:
        """Whether it is time to look at everything."""
        return time.monotonic() >= self._next_look

    def _run(self) -> None:
        faults, rules_due = 0, 0.0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if time.monotonic() >= rules_due:
                    rules_due = time.monotonic() + RULES_SECONDS
                    self._reload()
                self.look(everything=self.is_due())
            except Exception as error:
                faults += 1
                self._report(error, first=faults == 1)
                self._tried.set()
                self._stopping.wait(min(MOST_PAUSE_SECONDS, 0.5 * 2.0 ** min(faults, 10)))
                continue
            if faults:
                log.info("the registry is compared again, and runs are started")
            faults = 0
            self._tried.set()
            if self._wake.wait(max(0.0, min(rules_due, self._next_look) - time.monotonic())):
                self._stopping.wait(GATHER_SECONDS)

    def _reload(self) -> None:
        """Take the rules as they are in the file now; rules that are new begin with a look at everything."""
        before = self.rules.fault
        if self.rules.reload():
            self._next_look = 0.0
        self.metrics.rules_invalid.set(1 if self.rules.fault else 0)
        if self.rules.fault != before and self.rules.fault:
            self.metrics.failures.labels("rules").inc()

    def _report(self, error: Exception, first: bool) -> None:
        """Log a fault once; one of ours must not end the looking either."""
        known = isinstance(error, Transient | SQLAlchemyError)
        self.metrics.failures.labels("server" if known else "unexpected").inc()
        if isinstance(error, SQLAlchemyError):
            sentence = f"the relay's database does not answer ({database_fault(error)})"
        else:
            sentence = one_line(error, 300)
        if first:
            kind = "" if known else f"{type(error).__name__}: "
            log.error("%s%s; what is in the registry is compared and started once it does", kind, sentence)

    def look(self, everything: bool = True) -> None:
        """Look at all models, or at those that were woken, and start what is to be started.

        Raises Transient where a server does not answer, with nothing lost: the next look takes it up.
        """
        self._blocked, self._postponed = {}, {}
        try:
            if everything:
                self._look_at_all()
            self._look_at_woken()
        finally:
            with self._lock:
                self._woken = {**self._woken, **self._postponed}
            if everything and not self._stopping.is_set():
                self._count_runs()
        if "" in self._blocked:
            raise Transient(self._blocked[""])

    def _look_at_all(self) -> None:
        began = time.monotonic()
        models = self.registry.models()
        self._begin(models)
        names = {model.name for model in models if self._rules_for(model.name)}
        names |= {entry.name for entry in self.state.newest(WAITING, None)}
        for name in sorted(names, key=lambda name: ((name,) in self._failing, name)):
            if self._stopping.is_set():
                return
            self._look_at(name, time.time())
            self._look_at_woken()
        self.state.forgive(time.time() - KEEP_FAILED_SECONDS)
        self._next_look = time.monotonic() + self.poll_seconds
        self.metrics.poll_seconds.set(time.monotonic() - began)
        self.metrics.polled.set(time.time())

    def _look_at_woken(self) -> None:
        # Those that are woken meanwhile come next time, or the look at everything would never have its turn.
        for _ in range(len(self._woken)):
            if self._stopping.is_set():
                return
            with self._lock:
                name = next(iter(self._woken))
                noted = self._woken.pop(name)
            self._look_at(name, noted)

    def _begin(self, models: list[RegisteredModel]) -> None:
        """Note which rules there are, and for each that is new or wider the models that were there before."""
        registry = self.registry.shown_uri
        rules = [loaded.rule for loaded in self.rules.rules]
        known = self.state.rules(registry)
        if not known:
            self.state.import_earlier(registry, rules)
            known = self.state.rules(registry)
        for rule in rules:
            before = known.get(rule.name)
            if before != rule.models:
                past = [one for one in models if rule.fits(one.name) and not _fits(before or (), one.name)]
                self.state.set_rule(registry, rule.name, before, rule.models, past)
        for name in known.keys() - {rule.name for rule in rules}:
            self.state.set_rule(registry, name, known[name], ())
        self._known = {rule.name: rule.models for rule in rules}

    def _rules_for(self, name: str) -> list[LoadedRule]:
        """The rules for a model that are in force."""
        fit = [loaded for loaded in self.rules.rules if loaded.rule.fits(name)]
        return [loaded for loaded in fit if _fits(self._known.get(loaded.rule.name, ()), name)]

    def _look_at(self, name: str, noted: float) -> None:
        """Handle all versions of a model by all rules that are for it."""
        kept: list[LastSeen] = []
        removed: list[LastSeen] = []
        try:
            try:
                self._compare(name, kept, removed)
            finally:
                self.state.put(kept)
            self.state.drop(removed)
        except BaseException:
            # The next pass comes back to what a fault leaves behind.
            self._postponed[name] = noted
            raise

    def _compare(self, name: str, kept: list[LastSeen], removed: list[LastSeen]) -> None:
        """Handle a model; lists the entries that are to be kept, and those of what is not there any more."""
        created, versions = self._read(name)
        entries, rules = self.state.entries(name), self._rules_for(name)
        marks = [entry for entry in entries if not entry.version]
        past = {entry.rule for entry in marks if entry.created == created}
        known: dict[tuple[str, str, int], dict[str, LastSeen]] = {}
        for entry in entries:
            if entry.version and not entry.attempt:
                known.setdefault((entry.rule, entry.version, entry.created), {})[entry.alias] = entry
        kept += self._abandoned(entries, versions)
        for version in sorted(versions, key=lambda one: (name, one.version) in self._failing):
            if self._stopping.is_set():
                return
            changed: set[str] = set()
            for loaded in rules:
                rule = loaded.rule.name
                before = known.get((rule, version.version, version.created), {})
                found, changes = self._handle(loaded, version, before, rule in past)
                kept += [entry for alias, entry in found.items() if entry != before.get(alias)]
                removed += [entry for alias, entry in before.items() if found and alias not in found]
                changed |= changes
            self._emit(changed, version)
        removed += marks

    def _read(self, name: str) -> tuple[int, list[RegisteredVersion]]:
        """When a model was made, and its versions; none where there is no such model."""
        try:
            model = self.registry.model(name)
            versions = self.registry.versions(model)
        except NotRegistered:
            return 0, []
        except Transient:
            self._failing.add((name,))
            raise
        self._failing.discard((name,))
        return model.created, versions

    def _abandoned(self, entries: list[LastSeen], versions: list[RegisteredVersion]) -> list[LastSeen]:
        """Entries that wait no longer, because no rule is for them any more or their version was deleted."""
        there = {(version.version, version.created) for version in versions}
        rules = {loaded.rule.name: loaded.rule for loaded in self.rules.rules}
        found = []
        for entry in (entry for entry in entries if entry.state == WAITING):
            if entry.rule not in rules or not rules[entry.rule].fits(entry.name):
                found.append(_outcome(entry, SEEN, "no rule is for it any more"))
            elif (entry.version, entry.created) not in there:
                with suppress(NotRegistered):
                    if self.registry.version(entry.name, entry.version).created == entry.created:
                        continue
                found.append(self._fail(entry, NO_VERSION))
        return found

    def _handle(
        self, loaded: LoadedRule, version: RegisteredVersion, before: Mapping[str, LastSeen], past: bool
    ) -> tuple[dict[str, LastSeen], set[str]]:
        """By alias, the entries of a rule for a version, its runs started; and the changes that it is for."""
        rule = loaded.rule
        if version.status == "PENDING_REGISTRATION" and not past and not before:
            return {}, set()
        changes = _changes(before, version, past)
        first = LastSeen(
            rule.name, version.name, version.version, version.created, state=PAST if past else SEEN
        )
        now = {alias: before.get(alias) or replace(first, alias=alias) for alias in ("", *version.aliases)}
        state = SEEN if rule.backfill and now[""].state == PAST else now[""].state
        now[""] = replace(now[""], tags=tags_of(version), state=state)
        for alias in _due(rule, version, before, changes):
            now[alias] = self._start(loaded, version, now[alias])
        return now, changes & {*rule.on, *([BACKFILL] if rule.backfill else [])}

    def _start(self, loaded: LoadedRule, version: RegisteredVersion, entry: LastSeen) -> LastSeen:
        """Start the run that an entry stands for, or say why not; returns the entry as it is to be kept."""
        rule, of = loaded.rule, (version.name, version.version)
        if reason := self._blocked.get("") or self._blocked.get(rule.name):
            return self._wait(entry, reason)
        try:
            # As it is now: what was listed may have changed since.
            version = self.registry.version(*of)
            trail = self.registry.trail(version)
            decision = decide(
                loaded, version, entry.alias, trail, lambda: own_export(trail, self.registry, self.store)
            )
            self._failing.discard(of)
            if version.created != entry.created:
                return self._fail(entry, NO_VERSION)
            if decision.fault:
                return self._fail(entry, decision.why)
            if decision.why:
                return _outcome(entry, SEEN, decision.why)
            key = key_of(rule.name, version, entry.alias)
            # Anybody who sees runs sees their names: no tag or description of a version stands in one.
            run = self.runs.start(rule.name, key, "-".join(of), decision.overrides, rule.own)
        except NotRegistered:
            return self._fail(entry, NO_VERSION)
        except BadInput as fault:
            return self._fail(entry, str(fault))
        except NoDeployment:
            reason = f"Prefect has no deployment {FLOW}/{rule.name}; run `resprout triggers apply`"
            self._blocked[rule.name] = reason
            self.metrics.failures.labels("deployment_missing").inc()
            if entry.state != WAITING:
                log.warning("%s version %s waits: %s", *of, reason)
            return self._wait(entry, reason)
        except NoAnswer as fault:
            self._blocked[""] = str(fault)
            return self._wait(entry, str(fault))
        except Transient as fault:
            self._failing.add(of)
            self.state.put([self._wait(entry, str(fault))])
            raise
        except SQLAlchemyError:
            raise
        except Exception as error:
            # A fault of ours with one version must not hold up all others.
            text = f"{type(error).__name__}: {one_line(error, 300)}"
            log.error("%s version %s could not be handled (%s)", *of, text)
            self.metrics.failures.labels("unexpected").inc()
            return self._wait(entry, text)
        started = replace(_outcome(entry, STARTED, ""), flow_run_id=run)
        if self.state.note_start(started):
            self.metrics.started.labels(rule.name).inc()
            log.info("rule %s: %s version %s starts flow run %s", rule.name, *of, run)
        return started

    def _wait(self, entry: LastSeen, reason: str) -> LastSeen:
        waiting = _outcome(entry, WAITING, reason)
        if "" in self._blocked:
            # The next pass comes sooner than the next look at everything.
            self._postponed.setdefault(entry.name, waiting.at)
        return waiting

    def _fail(self, entry: LastSeen, reason: str) -> LastSeen:
        log.warning(
            "%s version %s starts nothing: rule %s: %s", entry.name, entry.version, entry.rule, reason
        )
        self.metrics.failures.labels("version").inc()
        return _outcome(entry, FAILED, reason)

    def _emit(self, changes: set[str], version: RegisteredVersion) -> None:
        """Emit an event for each change that a rule is for."""
        about = {
            "name": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "tags": dict(version.tags),
        }
        for change in sorted(changes):
            resource = f"resprout.model-version.{version.name}.{version.version}"
            try:
                self.runs.emit(f"resprout.model-version.{change}", resource, about)
            except Exception as error:
                # The runs are there; that an event is not changes nothing.
                log.debug("no event was emitted (%s)", type(error).__name__)

    def _count_runs(self) -> None:
        try:
            for state, count in self.runs.count().items():
                self.metrics.runs.labels(state).set(count)
        except Exception as error:
            # Where Prefect does not answer, the looks say so; whatever it is, the looking goes on.
            self.metrics.failures.labels("runs").inc()
            log.debug("Prefect's runs were not counted (%s)", type(error).__name__)


def _fits(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _outcome(entry: LastSeen, state: str, reason: str) -> LastSeen:
    """The entry in a state, since when it is in it."""
    return replace(entry, state=state, reason=reason, at=entry.at if entry.state == state else time.time())


def _changes(before: Mapping[str, LastSeen], version: RegisteredVersion, past: bool) -> set[str]:
    """Changes of a version since a rule saw it: created, alias, tag; BACKFILL for one of before the rule."""
    seen = before.get("")
    old = {BACKFILL} if seen is None or seen.state == PAST else set()
    if past:
        return old
    found = {"created"} if seen is None else old
    tags = json.loads(seen.tags or "{}") if seen is not None else dict(version.tags)
    if any(tags.get(name) != value for name, value in version.tags.items()):
        found.add("tag")
    if any(alias not in before for alias in version.aliases):
        found.add("alias")
    return found


def _due(
    rule: Rule, version: RegisteredVersion, before: Mapping[str, LastSeen], changes: set[str]
) -> list[str]:
    """The aliases for which a rule is to start a run now; "" for the version itself."""
    states = {alias: entry.state for alias, entry in before.items()}
    by_other = not mismatch(rule, changes - {"alias"}, version.name)
    by_alias = not mismatch(rule, changes & {"alias"}, version.name)
    return [
        alias
        for alias in aliases_for(rule, version)
        if STARTED not in (states.get(""), states.get(alias))
        and (by_other or states.get(alias) == WAITING or (by_alias and (not alias or alias not in states)))
    ]
