"""What the stages of a run begin with: the model and all data, brought here by the acquire stages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TypeVar

from resprout.configs.schema import RunConfig
from resprout.flows.check import check_fits
from resprout.flows.preflight import device
from resprout.flows.sources import Sources
from resprout.infra.licences import Credit
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.acquire.stage import acquire_model, acquire_rows, acquire_task, acquire_text
from resprout.tasks.evaluate.task_files import TASK_ROLE
from resprout.tasks.job import Job
from resprout.tasks.models.size import Shape, shape_of
from resprout.tasks.run import Run

C = TypeVar("C")


@dataclass(frozen=True)
class Acquired:
    """References to the model and to data; None where the config names none. `tasks` by their role.

    `credits` are their names and licences.
    """

    dense: ArtifactRef
    rows: ArtifactRef | None = None
    text: ArtifactRef | None = None
    calibration_text: ArtifactRef | None = None
    general_text: ArtifactRef | None = None
    encoder: ArtifactRef | None = None
    tasks: dict[str, ArtifactRef] = field(default_factory=dict)
    credits: tuple[Credit, ...] = ()


def job_of(config: RunConfig, section: C) -> Job[C]:
    """A job of the run that `config` describes."""
    model = config.model
    return Job(section, config.seed, device(model.device), model.dtype, model.trust_remote_code)


def acquire(config: RunConfig, run: Run, sources: Sources) -> Acquired:
    """Bring the model and all data here.

    Raises:
        BadInput: the config does not fit the model, which showed only now because it lay elsewhere.
    """

    def text(what: str) -> ArtifactRef | None:
        found = sources.texts.get(what)
        return acquire_text(run, job_of(config, found), label=f"acquire {what} text") if found else None

    calibration_text, general_text, evaluation_text = (
        text("calibration"),
        text("general"),
        text("evaluation"),
    )
    tasks = {
        f"{TASK_ROLE}{name}": acquire_task(run, job_of(config, rows), label=f"acquire task {name}")
        for name, rows in sources.tasks.items()
    }
    pool = sources.pool
    rows = acquire_rows(run, job_of(config, pool), label="acquire pool") if pool else None
    dense = acquire_model(run, job_of(config, sources.model), label="acquire model")
    encoder = sources.encoder
    brought = acquire_model(run, job_of(config, encoder), label="acquire encoder") if encoder else None
    if sources.shape is None and dense.digest:
        check_fits(config, shape_in_store(run, dense))
    return Acquired(
        dense, rows, evaluation_text, calibration_text, general_text, brought, tasks, sources.credits
    )


def shape_in_store(run: Run, dense: ArtifactRef) -> Shape:
    """The shape of an acquired model."""
    return shape_of(json.loads(run.store.read(dense.digest, "config.json")))
