"""Speeds of a sweep: the last models of all variants with the dense model, measured once and together."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field

from resprout.configs.result import ModelResult
from resprout.configs.schema import MeasureConfig
from resprout.flows import preflight
from resprout.flows.conclude import speeds_to_dense
from resprout.flows.dry_run import look_up
from resprout.flows.inputs import Sources
from resprout.flows.stages import MODELS, Steps, job_of
from resprout.flows.sweep_session import SweepSession
from resprout.infra.mlflow.tracking import WRITER, Tracker
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.job import Job
from resprout.tasks.core.run import Run
from resprout.tasks.core.stage import Input, Subfolder, ref_of
from resprout.tasks.measure.ratio import metrics_of
from resprout.tasks.measure.stage import DENSE, measure


@dataclass
class Group:
    """Models that are measured alike with the same dense one, each once, under the first variant's name."""

    job: Job[MeasureConfig]
    dense: ArtifactRef
    models: dict[str, Input] = field(default_factory=dict)
    results: list[tuple[str, dict[str, ModelResult]]] = field(default_factory=list)
    """Name among `models`, and the variant's models."""

    def add(self, name: str, model: Input, models: dict[str, ModelResult]) -> None:
        """Take a variant's last model in, where it is not another's as well."""
        same = (one for one, other in self.models.items() if _place(other) == _place(model))
        known = next(same, name)
        self.models.setdefault(known, model)
        self.results.append((known, models))


def measure_variants(session: SweepSession) -> None:
    """Measure what the variants made, and write speeds and ratios into their results.

    Variants with another dense model, or measured another way, are groups of their own. The measurements
    are in an MLflow run of the sweep's name, since those of the variants have ended.
    """
    first = session.variants[0].loaded
    infra = first.config.infra
    tracker = Tracker(infra.mlflow, first.home)
    store = ArtifactStore.from_config(infra.store, first.home, infra.proof)
    groups = _groups(session, store, tracker)
    if not groups:
        return
    tracker.connect()
    run_id = tracker.start(session.config.name, {"resprout.sweep": session.config.name})
    with ExitStack() as at_end:
        at_end.enter_context(tracker.running(run_id))
        run = Run(
            store=store,
            tracker=tracker,
            locks=LeaseLockManager(store.driver),
            results=ArtifactResults.of(store),
            display=session.display(session.config.name),
            home=first.home,
            mlflow_run_id=run_id,
            retries=infra.prefect.retries,
            retry_delay_seconds=infra.prefect.retry_delay_seconds,
            cancelled=lambda: session.interrupted,
        )
        at_end.callback(run.locks.close)
        store.in_use = InUseReferences(store.driver, run.locks)
        at_end.callback(store.in_use.close)
        tracker.log(run_id, tags={WRITER: store.in_use.writer})
        for number, group in enumerate(groups, 1):
            role = "" if number == 1 else str(number)
            made = measure(run, group.job, {DENSE: group.dense, **group.models}, role)
            _fill(group, json.loads(store.read(made.digest, "metrics.json")))


def _groups(session: SweepSession, store: ArtifactStore, tracker: Tracker) -> list[Group]:
    variants = {one.name: one for one in session.variants}
    found: dict[tuple[str, str], Group] = {}
    for ended in session.result.variants:
        variant, models = variants[ended.name], ended.result.made_models()
        if variant.measure is None or not models:
            continue
        config, sources = variant.loaded.config, Sources(variant.loaded, tracker.uri)
        steps = Steps(config, sources.sections, sources.credits)
        artifacts, _ = look_up(steps, store)
        job, dense = (
            job_of(config, variant.measure, preflight.device(config.model.device)),
            artifacts.of("source"),
        )
        # Without inputs the key is of settings, dtype and device.
        group = found.setdefault((dense.digest, measure.key(job, {})), Group(job, dense))
        group.add(ended.name, artifacts.input([*steps.groups[MODELS].values()][-1]), models)
    return [*found.values()]


def _place(model: Input) -> tuple[str, str]:
    return ref_of(model).digest, model.path if isinstance(model, Subfolder) else ""


def _fill(group: Group, measured: dict[str, float]) -> None:
    for name, models in group.results:
        own = metrics_of(name, measured)
        last = [*models.values()][-1]
        last.metrics.update(own)
        last.speeds = speeds_to_dense(own)
        models[DENSE].metrics.update(metrics_of(DENSE, measured))
