"""Speeds of a sweep: the last models of all variants with the dense model, measured once and together."""

from __future__ import annotations

from dataclasses import dataclass, field

from resprout.configs.result import ModelResult
from resprout.configs.schema import MeasureConfig
from resprout.flows import preflight
from resprout.flows.conclude import speeds_to_dense
from resprout.flows.dry_run import look_up
from resprout.flows.inputs import Sources
from resprout.flows.stages import MODELS, Steps, job_of
from resprout.flows.sweep_run import SweepRun
from resprout.flows.sweep_session import SweepSession
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.job import Job
from resprout.tasks.core.run import Run
from resprout.tasks.core.stage import Input, Subfolder, ref_of
from resprout.tasks.measure.ratio import metrics_of
from resprout.tasks.measure.stage import measure
from resprout.tasks.quantize.names import DENSE


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


def measure_variants(session: SweepSession, within: SweepRun) -> None:
    """Measure what the variants made, and write speeds and ratios into their results.

    Variants with another dense model, or measured another way, are groups of their own. The measurements
    are in the sweep's own run, since those of the variants have ended.
    """
    first = session.base
    groups = _groups(session, within.store, within.tracker)
    if not groups:
        return
    run = Run(
        store=within.store,
        tracker=within.tracker,
        locks=within.locks,
        results=ArtifactResults.of(within.store),
        display=session.display(session.config.name),
        home=first.home,
        mlflow_run_id=within.id,
        retries=first.config.infra.prefect.retries,
        retry_delay_seconds=first.config.infra.prefect.retry_delay_seconds,
        cancelled=lambda: session.interrupted,
    )
    for number, group in enumerate(groups, 1):
        role = "" if number == 1 else str(number)
        made = measure(run, group.job, {DENSE: group.dense, **group.models}, role)
        _fill(group, within.store.read_json(made.digest, "metrics.json"))


def _groups(session: SweepSession, store: ArtifactStore, tracker: Tracker) -> list[Group]:
    variants = {one.name: one for one in session.variants}
    found: dict[tuple[str, str], Group] = {}
    for ended in session.result.variants:
        variant, models = variants[ended.name], ended.result.made_models()
        if variant.measure is None or not models or ended.result.status == "stopped":
            continue
        config, sources = variant.loaded.config, Sources(variant.loaded, tracker.uri)
        steps = Steps(config, sources.sections, sources.credits)
        artifacts, _ = look_up(steps, store)
        job, dense = (
            job_of(config, variant.measure, preflight.device(config.model.device)),
            artifacts.of("source"),
        )
        last = [*steps.groups[MODELS].values()][-1]
        if last.step not in artifacts:
            # An earlier variant of a search, whose model is not here any more or of other code.
            continue
        # Without inputs the key is of settings, dtype and device.
        group = found.setdefault((dense.digest, measure.key(job, {})), Group(job, dense))
        group.add(ended.name, artifacts.input(last), models)
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
