"""Shards of a stage as Prefect tasks, in threads or on workers elsewhere.

What travels is a `Call`: names, a section, references to artifacts, and where store and tracker are, with
${VARIABLE} in place of each secret. The worker opens store and tracker itself and runs the shard as any other
stage: found in the cache, under its lease, tried again, published, recorded, tracked.
"""

from __future__ import annotations

import functools
import importlib
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from pydantic import BaseModel

from resprout.configs import errors
from resprout.configs.errors import StageFailed
from resprout.configs.load import Loaded, arrived, travelling
from resprout.configs.schema import InfraConfig
from resprout.flows.runners import apart, submit, task_runner
from resprout.flows.session import NoDisplay
from resprout.infra.environment import prepare
from resprout.infra.store.reference import ArtifactRef
from resprout.tasks.job import Job, Progress
from resprout.tasks.run import Run
from resprout.tasks.share import Share
from resprout.tasks.stage import Input, Part, Stage


class Place(BaseModel):
    """Where a worker finds the store and the tracker of a run."""

    infra: dict[str, Any]
    mlflow_run_id: str


class Given(BaseModel):
    """An input by reference."""

    ref: ArtifactRef
    path: str | None = None


class Call(BaseModel):
    """One shard to make; `stage` and `section` are "module:attribute"."""

    place: Place
    stage: str
    section: str
    config: dict[str, Any]
    job: dict[str, Any]
    inputs: dict[str, Given]
    label: str


def _make(call: str, label: str) -> dict[str, Any]:
    """The reference to the shard that a `Call`, as JSON, describes, or its fault: both as plain data.

    An error of a library may not survive being pickled, or not be known where it arrives.
    """
    try:
        return {"made": _called(call).model_dump(mode="json")}
    except Exception as error:
        return {"fault": type(error).__name__, "text": str(error), "where": traceback.format_exc()}


def _called(call: str) -> ArtifactRef:
    asked = Call.model_validate_json(call)
    stage: Stage[Any] = _named(asked.stage)
    section = _named(asked.section).model_validate(asked.config)
    job = Job(section, **{**asked.job, "share": Share(**asked.job["share"])})
    inputs: dict[str, Input] = {
        role: one.ref if one.path is None else Part(one.ref, one.path) for role, one in asked.inputs.items()
    }
    place = asked.place.model_dump_json()
    run = _HERE.get(place) or _opened(place)
    return apart(lambda: stage(run, job, inputs, asked.label))


MAKE = Task(
    fn=_make, name="shard", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False, retries=0
)
"""Carries a call to a worker; the stage there is a task of its own, which is kept and tried again."""

_HERE: dict[str, Run] = {}
"""Runs of this process by the place that their calls name."""


class FanOut:
    """Has shards made by the run's task runner, which is started with the first of them."""

    def __init__(self, loaded: Loaded, run: Run) -> None:
        self._infra = loaded.config.infra
        self._place = Place(infra=travelling(loaded), mlflow_run_id=run.mlflow_run_id)
        self._opened = ExitStack()
        self._runner: Any = None
        here = self._place.model_dump_json()
        _HERE[here] = replace(run, display=NoDisplay(), stages=[], shards=1)
        self._opened.callback(_HERE.pop, here)

    def __call__(
        self,
        stage: Stage[Any],
        jobs: Sequence[Job[Any]],
        inputs: Mapping[str, Input],
        label: str,
        progress: Progress,
    ) -> list[ArtifactRef]:
        """The artifacts of the jobs, in their order; all are tried before the first fault is raised."""
        if self._runner is None:
            self._runner = self._opened.enter_context(task_runner(self._infra))
        futures = [self._submit(stage, job, inputs, label) for job in jobs]
        made, faults = list[ArtifactRef](), list[Exception]()
        for done, future in enumerate(futures, 1):
            try:
                found = future.result()
            except Exception as error:
                faults.append(_lost(error, f"shard {done} of {len(jobs)} of {label}"))
            else:
                if "made" in found:
                    made.append(ArtifactRef.model_validate(found["made"]))
                else:
                    faults.append(_as_raised(found))
            progress(done, len(jobs), "shards")
        if faults:
            raise faults[0]
        return made

    def close(self) -> None:
        """Stop the runner, and its cluster where it is a local one."""
        self._opened.close()

    def _submit(
        self, stage: Stage[Any], job: Job[Any], inputs: Mapping[str, Input], label: str
    ) -> PrefectFuture[Any]:
        section = type(job.config)
        plain = {name: value for name, value in vars(job).items() if name != "config"}
        name = f"{label} shard {job.share.index + 1} of {job.share.count}"
        call = Call(
            place=self._place,
            stage=stage.target,
            section=f"{section.__module__}:{section.__qualname__}",
            config=job.config.model_dump(mode="json"),
            job={**plain, "share": asdict(job.share)},
            inputs={role: _given(one) for role, one in inputs.items()},
            label=name,
        )
        # As text, so that Prefect does not look through it for futures.
        return submit(self._runner, MAKE, {"call": call.model_dump_json(), "label": name})


@functools.lru_cache(maxsize=4)
def _opened(place: str) -> Run:
    """Store and tracker as they are seen from this process."""
    asked = Place.model_validate_json(place)
    infra: InfraConfig = arrived(asked.infra)
    home = Path(infra.home or ".")
    prepare(infra, home)
    # MLflow reads its environment when it is imported, so the tracker comes after `prepare`.
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.infra.tracking import Tracker

    tracker = Tracker(infra.mlflow, home)
    tracker.connect()
    store = ArtifactStore.from_config(infra.store, home)
    return Run(
        store=store,
        tracker=tracker,
        locks=LeaseLockManager(store.driver),
        results=ArtifactResults.of(store),
        display=NoDisplay(),
        home=home,
        mlflow_run_id=asked.mlflow_run_id,
        retries=infra.prefect.retries,
        retry_delay_seconds=infra.prefect.retry_delay_seconds,
    )


def _named(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _given(one: Input) -> Given:
    return Given(ref=one.ref, path=one.path) if isinstance(one, Part) else Given(ref=one)


def _as_raised(found: dict[str, Any]) -> Exception:
    """The fault that a worker met; of an error that is not ours its name and text."""
    own = getattr(errors, found["fault"], None)
    error = own(found["text"]) if own is not None else StageFailed(f"{found['fault']}: {found['text']}")
    error.add_note(f"On the worker:\n{found['where']}")
    return error


def _lost(error: Exception, what: str) -> Exception:
    if type(error).__name__ not in ("KilledWorker", "WorkerCrashedError"):
        return error
    return StageFailed(
        f"{what} ended every process that tried it, most likely for want of memory; use smaller batches or "
        "more shards; finished shards are kept"
    )
