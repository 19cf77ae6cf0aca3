"""The one @stage decorator: Prefect task + cache key + artifact + nested MLflow run + progress.

A stage wraps a pure function `(job, inputs, workdir, progress) -> None` that writes files into `workdir`.
Calling it:

1. the *key* is computed: stage name, config section, digests of the inputs, the seed where the stage draws,
   dtype and device where it computes, the hardware where it measures, versions of the libraries it declares,
   and a hash of the code that its function and the selected methods reach (`tasks.code`). What does not
   enter: servers, secrets, folders, users.
2. a Prefect task with that key runs. Prefect looks the key up in the artifact store (`infra.store.results`,
   which also checks that the artifact is whole), takes the stage's lease, retries transient faults, persists
   the reference.
3. on a miss the task's body has shards made where the work is shared out (each a stage of its own, whose
   artifact is one more input), opens the inputs, calls the function, publishes the folder, writes its record.
4. outside the cached body, each time, one nested MLflow run is written: params, metrics, small files,
   digests.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from resprout.configs.errors import Transient, Unreachable
from resprout.infra import identity
from resprout.infra.notes import NOTE, run_page
from resprout.infra.store.record import ArtifactRef, Parent, Record, stage_key
from resprout.tasks.code import code_hash
from resprout.tasks.cost import Cost, metered, total
from resprout.tasks.faults import as_sentence
from resprout.tasks.job import Job, Progress
from resprout.tasks.progress import Throttled
from resprout.tasks.run import Forecast, Nested
from resprout.tasks.share import SHARD_ROLE, WHOLE, Share
from resprout.tasks.track import flat, log_artifact, log_scan, profile, stage_note

if TYPE_CHECKING:
    from prefect import Task

    from resprout.tasks.run import Run

C = TypeVar("C")
Body = Callable[[Job[C], Mapping[str, Path], Path, Progress], None]

_COMPUTING = threading.Lock()
"""torch's default dtype and the seeds belong to the process: of its threads one computes, others transfer."""


@dataclass(frozen=True)
class Part:
    """A folder inside an artifact, given to a stage as its input."""

    ref: ArtifactRef
    path: str


Input = ArtifactRef | Part


def ref_of(given: Input) -> ArtifactRef:
    """The artifact of an input."""
    return given.ref if isinstance(given, Part) else given


def config_data(config: Any) -> Any:
    """A section as plain data for key and record: its own `key_data()`, else its dump."""
    if hasattr(config, "key_data"):
        return config.key_data()
    if hasattr(config, "model_dump"):
        return config.model_dump(mode="json")
    return config


def always(config: Any) -> bool:
    """Whatever the config says."""
    return True


def no_methods(config: Any) -> list[str]:
    """The stage has no methods to choose from."""
    return []


class Folders(Mapping[str, Path]):
    """A stage's inputs as local folders by role; what the stage does not look at is not brought here."""

    def __init__(self, run: Run, inputs: Mapping[str, Input], opened: ExitStack) -> None:
        self._run, self._inputs, self._opened = run, inputs, opened
        self._folders: dict[str, Path] = {}

    def __getitem__(self, role: str) -> Path:
        if role not in self._folders:
            given = self._inputs[role]
            folder = self._opened.enter_context(self._run.store.open(ref_of(given).digest))
            self._folders[role] = folder / given.path if isinstance(given, Part) else folder
        return self._folders[role]

    def __contains__(self, role: object) -> bool:
        return role in self._inputs

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage: its pure function `body` and what its cache key is made of (see the module's text).

    `target` is where another process finds it, as "module:attribute".
    """

    name: str
    kind: str
    body: Body[C]
    libraries: tuple[str, ...] = ()
    methods: Callable[[C], list[str]] = no_methods
    seeded: bool = False
    computes: bool = True
    hardware: bool = False
    settings: Callable[[C], Any] = config_data
    shard: Stage[C] | None = None
    splits: Callable[[C], bool] = always
    target: str = ""

    def key(self, job: Job[C], inputs: Mapping[str, Input]) -> str:
        """The cache key: sha256 of everything that decides the stage's bytes."""
        return self.key_of(self.key_parts(job, inputs))

    def key_of(self, parts: Mapping[str, Any]) -> str:
        """The key that these parts make."""
        return stage_key(parts)

    def key_parts(self, job: Job[C], inputs: Mapping[str, Input]) -> dict[str, Any]:
        """What enters the key, by name; kept readable so that a miss can be explained."""
        config = self.settings(job.config)
        if job.share != WHOLE:
            config = {"share": [job.share.index, job.share.count], **config}
        parts: dict[str, Any] = {
            "stage": self.name,
            "config": config,
            "parents": {
                role: [ref_of(given).digest, given.path if isinstance(given, Part) else ""]
                for role, given in sorted(inputs.items())
            },
            "libraries": self.versions(),
            "code": code_hash([f"{self.body.__module__}:{self.body.__name__}", *self.methods(job.config)]),
        }
        if self.seeded:
            parts["seed"] = job.seed
        if self.computes:
            parts["dtype"], parts["device"] = job.dtype, job.device
        if self.hardware:
            from resprout.tasks.measure.hardware import fingerprint

            parts["hardware"] = fingerprint()
        return parts

    def versions(self) -> dict[str, str]:
        """Versions of the declared libraries as installed."""
        return {name: identity.library_version(name) for name in self.libraries}

    def __call__(
        self, run: Run, job: Job[C], inputs: Mapping[str, Input] | None = None, label: str | None = None
    ) -> ArtifactRef:
        """The stage's artifact, found or made; `label` names this call where a flow calls the stage twice."""
        inputs, label = inputs or {}, label or self.name
        run.stop_if_cancelled()
        if run.look_up_only:
            return self._look_up(run, job, inputs, label)
        # Once, before the body: an edit while the stage runs must not be recorded as what ran.
        parts = self.key_parts(job, inputs)
        key = self.key_of(parts)
        spent: list[Cost] = []
        began = time.perf_counter()

        def produce() -> dict[str, Any]:
            with metered(job.device) as cost:
                spent.append(cost)
                return self._produce(run, job, inputs, parts, label)

        state = self._task(run, produce, key, label)(return_state=True)
        run.work_seconds += sum(cost.seconds for cost in spent)
        made = ArtifactRef.model_validate(state.result(raise_on_failure=True))
        # A cached reference still has the address of the store in which it was made.
        ref = made.model_copy(update={"uri": run.store.uri(made.digest)})
        cost = total(spent)
        run.add(label, ref, cost or Cost(time.perf_counter() - began), cached=cost is None)
        self._track(run, job, inputs, ref, label, cost)
        if cost is not None:
            run.tracker.has_done(run.mlflow_run_id, ref.record)
        return ref

    def _look_up(self, run: Run, job: Job[C], inputs: Mapping[str, Input], label: str) -> ArtifactRef:
        """The artifact where it is in the store; else a reference to nothing, which no later stage finds."""
        missing = tuple(role for role, given in inputs.items() if not ref_of(given).digest)
        parts = self.key_parts(job, inputs)
        key = "" if missing else self.key_of(parts)
        found = None if missing else run.results.find(key)
        size = found.bytes if found is not None else None
        run.forecasts.append(Forecast(label, self.name, found is not None, parts, missing, size))
        return found or ArtifactRef(kind=self.kind, digest="", key=key, record="", uri="", bytes=0)

    def _task(
        self, run: Run, produce: Callable[[], dict[str, Any]], key: str, label: str
    ) -> Task[[], dict[str, Any]]:
        from prefect import Task
        from prefect.cache_policies import CacheKeyFnPolicy
        from prefect.transactions import IsolationLevel

        policy = CacheKeyFnPolicy(cache_key_fn=lambda context, parameters: key).configure(
            isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=run.locks
        )
        task = Task(
            fn=produce,
            name=self.name,
            task_run_name=label,
            cache_policy=policy,
            persist_result=True,
            result_serializer="json",
            cache_result_in_memory=False,
            retries=run.retries,
            retry_delay_seconds=[run.retry_delay_seconds * 2**attempt for attempt in range(run.retries)],
            retry_jitter_factor=0.5,
            retry_condition_fn=_is_transient,
        )
        # The constructor takes only storage saved on the server; ours is the run's own store and holds
        # credentials.
        task.result_storage = run.results
        return task

    def _produce(
        self, run: Run, job: Job[C], inputs: Mapping[str, Input], parts: Mapping[str, Any], label: str
    ) -> dict[str, Any]:
        key = self.key_of(parts)
        started = datetime.datetime.now(datetime.UTC)
        start = time.perf_counter()
        progress = Throttled(run.display.started(label), label, run.stop_if_cancelled)
        inputs = {**inputs, **self._shared_out(run, job, inputs, label, progress)}
        given = replace(job, digests={role: ref_of(one).digest for role, one in inputs.items()})
        with run.store.workdir() as workdir, ExitStack() as opened:
            content = workdir / "content"
            content.mkdir()
            try:
                with _COMPUTING if self.computes else nullcontext():
                    self.body(given, Folders(run, inputs, opened), content, progress)
            except BaseException as error:
                raise as_sentence(error, self.name, run.home) from error
            run.stop_if_cancelled()
            guard = run.locks.guard(key)
            manifest = run.keep(lambda: run.store.publish(content, guard, move=True))
        record = Record(
            stage=self.name,
            key=key,
            kind=self.kind,
            config=parts["config"],
            parents=tuple(
                Parent(role=role, digest=ref_of(given).digest, record=ref_of(given).record)
                for role, given in sorted(inputs.items())
            ),
            content=manifest.digest,
            manifest=manifest.sha256,
            seed=job.seed if self.seeded else None,
            dtype=job.dtype if self.computes else None,
            device=job.device if self.computes else None,
            code={**identity.code_identity(), "reached": parts["code"]},
            libraries=parts["libraries"],
            machine=identity.machine(),
            who=identity.who(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 3),
            origin=_optional(job.config, "origin"),
            licence=_optional(job.config, "licence_note"),
        ).with_key_of(parts)
        # Killed between the two, a run leaves a record that nothing but this names; it is not worth the work.
        with suppress(Transient, Unreachable):
            run.tracker.announce(run.mlflow_run_id, record.id)
        return ArtifactRef(
            kind=self.kind,
            digest=manifest.digest,
            key=key,
            record=run.keep(lambda: run.store.put_record(record)),
            uri=run.store.uri(manifest.digest),
            bytes=sum(entry.size for entry in manifest.files),
        ).model_dump(mode="json")

    def _shared_out(
        self, run: Run, job: Job[C], inputs: Mapping[str, Input], label: str, progress: Progress
    ) -> dict[str, ArtifactRef]:
        """Artifacts of the stage's shards, by the roles in which its function is given them.

        They are no part of its key: the function writes the same bytes with and without them.
        """
        if run.fan_out is None or run.shards == 1 or self.shard is None or not self.splits(job.config):
            return {}
        jobs = [replace(job, share=Share(index, run.shards)) for index in range(run.shards)]
        made = run.fan_out(self.shard, jobs, inputs, label, progress)
        return {f"{SHARD_ROLE}{index:06d}": ref for index, ref in enumerate(made)}

    def _track(
        self,
        run: Run,
        job: Job[C],
        inputs: Mapping[str, Input],
        ref: ArtifactRef,
        label: str,
        cost: Cost | None,
    ) -> None:
        if (label, ref.key) in run.tracked:
            return
        tracker, cached = run.tracker, cost is None
        tags = {
            "resprout.stage": self.name,
            "resprout.cached": str(cached).lower(),
            "resprout.key": ref.key,
            "resprout.kind": ref.kind,
            "resprout.digest": ref.digest,
            "resprout.uri": ref.uri,
            "resprout.record": ref.record,
            **{f"resprout.parent.{role}": ref_of(given).digest for role, given in inputs.items()},
        }
        producer = tracker.producer(ref.record) if cached else None
        if producer is not None:
            tags["resprout.produced_by_run"] = producer.info.run_id
        maker = run_page(producer.info.experiment_id, producer.info.run_id) if producer else None
        whole = run_page(tracker.experiment_id, run.mlflow_run_id)
        tags[NOTE] = stage_note(label, whole, ref.digest, cached, maker)
        run_id = tracker.start(label, tags, parent=run.mlflow_run_id)
        run.nested[label] = Nested(run_id, maker)
        with tracker.running(run_id):
            timing = {} if cost is None else cost.metrics()
            params = {**flat(self.settings(job.config)), **({"seed": job.seed} if self.seeded else {})}
            log_artifact(run, run_id, ref, params, timing)
            if self.kind in ("rows", "text", "task-data"):
                origin = _optional(job.config, "origin") or {}
                for target in (run_id, run.mlflow_run_id):
                    role = label.removeprefix("acquire ")
                    tracker.log_dataset(target, role, ref.digest, origin, profile(origin))
                if run.scan is not None and not inputs:
                    log_scan(run, run_id, ref, run.scan)


def stage(
    name: str,
    *,
    kind: str,
    libraries: tuple[str, ...] = (),
    methods: Callable[[Any], list[str]] = no_methods,
    seeded: bool = False,
    computes: bool = True,
    hardware: bool = False,
    settings: Callable[[Any], Any] = config_data,
    shard: Stage[Any] | None = None,
    splits: Callable[[Any], bool] = always,
) -> Callable[[Body[Any]], Stage[Any]]:
    """Turn a pure function into a stage.

    `libraries`: distributions whose versions enter the key. `methods(config)`: modules of the selected
    methods. `seeded`: the stage draws, so the seed enters. `computes`: dtype and device enter. `hardware`:
    the machine enters. `settings(config)`: what of the section enters, as plain data, where that is not all.
    `shard`: the stage that makes one share of the work, where `splits(config)`; its artifacts become inputs.
    """

    def wrap(body: Body[Any]) -> Stage[Any]:
        target = f"{body.__module__}:{body.__qualname__}"
        return Stage(
            name, kind, body, libraries, methods, seeded, computes, hardware, settings, shard, splits, target
        )

    return wrap


def _optional(config: Any, method: str) -> Any:
    found = getattr(config, method, None)
    return found() if callable(found) else None


def _is_transient(task: Any, task_run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, Transient)
