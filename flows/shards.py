"""Shards of a stage as Prefect tasks, in threads or on workers elsewhere.

What travels is a `Call`: names, a section, references to artifacts, and where store and tracker are, with
${VARIABLE} in place of each secret. The worker opens store and tracker itself and runs the shard as any other
stage: found in the cache, under its lease, tried again, published, recorded, tracked.
"""

from __future__ import annotations

import functools
import importlib
import logging
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
from resprout.configs.errors import StageFailed, Transient
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import Loaded, arrived, travelling
from resprout.flows.runners import apart, lost, started, submit
from resprout.flows.session import NoDisplay
from resprout.infra.environment import prepare
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.core.job import Job, Progress, Share
from resprout.tasks.core.run import Run
from resprout.tasks.core.stage import Input, Stage, Subfolder

logger = logging.getLogger(__name__)


class RunLocation(BaseModel):
    """Where a worker finds the store and the tracker of a run."""

    infra: dict[str, Any]
    mlflow_run_id: str
    writer: str
    """The run's lease, under which `gc` spares what a worker relies on."""


class Given(BaseModel):
    """An input by reference."""

    ref: ArtifactRef
    path: str | None = None


class Call(BaseModel):
    """One shard to make; `stage` and `section` are "module:attribute"."""

    place: RunLocation
    stage: str
    section: str
    config: dict[str, Any]
    job: dict[str, Any]
    inputs: dict[str, Given]
    role: str


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
        role: one.ref if one.path is None else Subfolder(one.ref, one.path)
        for role, one in asked.inputs.items()
    }
    place = asked.place.model_dump_json()
    run = _HERE.get(place) or _opened(place)
    return apart(lambda: stage(run, job, inputs, asked.role))


LEFT_OUT = ("config", "checkpoints", "watch")
"""Of a job, what travels by itself or is given where the stage runs."""
MAKE = Task(
    fn=_make, name="shard", task_run_name="{label}", cache_policy=NO_CACHE, persist_result=False, retries=0
)
"""Carries a call to a worker; the stage there is a task of its own, which is kept and tried again."""

_HERE: dict[str, Run] = {}
"""Runs of this process by the place that their calls name."""


class TaskRunnerFanOut:
    """Has shards made by the run's task runner, which is started with the first of them."""

    def __init__(self, loaded: Loaded, run: Run) -> None:
        self._infra = loaded.config.infra
        self._store = run.store
        self._place = RunLocation(
            infra=travelling(loaded),
            mlflow_run_id=run.mlflow_run_id,
            writer=run.store.in_use.writer if run.store.in_use is not None else "",
        )
        self._cluster = ExitStack()
        self._runner: Any = None
        self._here = self._place.model_dump_json()
        _HERE[self._here] = replace(run, display=NoDisplay(), stages=[], shards=1)

    def __call__(
        self,
        stage: Stage[Any],
        jobs: Sequence[Job[Any]],
        inputs: Mapping[str, Input],
        role: str,
        progress: Progress,
    ) -> list[ArtifactRef]:
        """The artifacts of the jobs, in their order; all are tried before the first fault is raised."""
        if self._runner is None:
            self._runner = self._cluster.enter_context(started(self._infra))
        label = stage.label(role)
        # Before any is made: an edit meanwhile must not pass for what was asked for.
        asked = [stage.key_parts(job, inputs) for job in jobs]
        try:
            futures = [self._submit(stage, job, inputs, role) for job in jobs]
        except Exception as error:
            self._stop()
            raise lost(error, f"the shards of {label}") from error
        made, faults, is_lost = list[ArtifactRef](), list[Exception](), False
        for done, (parts, future) in enumerate(zip(asked, futures, strict=True), 1):
            what = f"shard {done} of {len(jobs)} of {label}"
            try:
                found = future.result()
            except Exception as error:
                fault = lost(error, what)
                is_lost = is_lost or isinstance(fault, Transient)
                faults.append(fault)
            else:
                try:
                    made.append(self._as_asked(found, stage.key_of(parts), parts, what))
                except Exception as error:
                    faults.append(error)
            progress(done, len(jobs), "shards")
        if is_lost:
            # The stage is tried again, which must not meet the dead connection.
            self._stop()
        if faults:
            raise faults[0]
        return made

    def close(self) -> None:
        """Stop the runner, and its cluster where it is a local one; a fault there costs no result."""
        _HERE.pop(self._here, None)
        self._stop()

    def _stop(self) -> None:
        self._runner = None
        try:
            self._cluster.close()
        except Exception as error:
            logger.warning("the %s task runner did not stop cleanly: %s", self._infra.task_runner, error)

    def _as_asked(self, found: dict[str, Any], key: str, parts: Mapping[str, Any], what: str) -> ArtifactRef:
        """The shard with this key; StageFailed where a worker has other versions and so made another one."""
        if "made" not in found:
            raise _as_raised(found)
        made = ArtifactRef.model_validate(found["made"])
        if made.key == key:
            self._store.rely_on(made.digest)
            return made
        record = self._store.get_record(made.record)
        ours = {**parts["libraries"], "resprout's code": parts["code"][:12]}
        theirs = {**record.libraries, "resprout's code": str(record.code.get("reached"))[:12]}
        differ = [
            f"{name} {theirs.get(name, 'none')} (here {ours.get(name, 'none')})"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]
        raise StageFailed(
            f"{what} was made on {record.machine.get('host')} with {', '.join(differ) or 'other settings'}, "
            "so it is not the one that was asked for; install on the workers what is installed here and run "
            "the same command again"
        )

    def _submit(
        self, stage: Stage[Any], job: Job[Any], inputs: Mapping[str, Input], role: str
    ) -> PrefectFuture[Any]:
        section = type(job.config)
        plain = {name: value for name, value in vars(job).items() if name not in LEFT_OUT}
        role = f"{role} shard {job.share.index + 1} of {job.share.count}".lstrip()
        call = Call(
            place=self._place,
            stage=stage.target,
            section=f"{section.__module__}:{section.__qualname__}",
            config=job.config.model_dump(mode="json"),
            job={**plain, "share": asdict(job.share)},
            inputs={role: _given(one) for role, one in inputs.items()},
            role=role,
        )
        # As text, so that Prefect does not look through it for futures.
        return submit(self._runner, MAKE, {"call": call.model_dump_json(), "label": stage.label(role)})


@functools.lru_cache(maxsize=4)
def _opened(place: str) -> Run:
    """Store and tracker as they are seen from this process."""
    asked = RunLocation.model_validate_json(place)
    infra: InfraConfig = arrived(asked.infra)
    home = Path(infra.home or ".")
    prepare(infra, home)
    # MLflow reads its environment when it is imported, so the tracker comes after `prepare`.
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.in_use import InUseReferences
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore

    tracker = Tracker(infra.mlflow, home)
    tracker.connect()
    store = ArtifactStore.from_config(infra.store, home, infra.proof)
    locks = LeaseLockManager(store.driver)
    store.in_use = InUseReferences(store.driver, locks, writer=asked.writer)
    return Run(
        store=store,
        tracker=tracker,
        locks=locks,
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
    return Given(ref=one.ref, path=one.path) if isinstance(one, Subfolder) else Given(ref=one)


def _as_raised(found: dict[str, Any]) -> Exception:
    """The fault that a worker met; of an error that is not ours its name and text."""
    own = getattr(errors, found["fault"], None)
    error = own(found["text"]) if own is not None else StageFailed(f"{found['fault']}: {found['text']}")
    error.add_note(f"On the worker:\n{found['where']}")
    return error
