"""One flow run, and how it runs its stages: Prefect task, artifact, record, nested MLflow run.

For each stage:

1. the *key* is computed from its declaration, settings and inputs (`tasks.core.cache_key`);
2. a Prefect task with that key runs. Prefect looks the key up in the artifact store (`infra.store.results`,
   which also checks that the artifact is whole), takes the stage's lease, retries transient faults, persists
   the reference;
3. on a miss the task's body has shards made where the work is shared out (each a stage of its own, whose
   artifact is one more input), opens the inputs, calls the function, publishes the folder, writes its record;
4. outside the cached body, each time, one nested MLflow run is written: params, metrics, small files,
   digests. A body that shows curves as it goes (`job.watch`) has begun it then, and it ends as the body did.
"""

from __future__ import annotations

import datetime
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from resprout.configs.errors import ResproutError, StageFailed, Transient, Unreachable
from resprout.configs.result import ArtifactResult, StageResult
from resprout.infra import identity
from resprout.infra.markdown import NOTE, run_page
from resprout.infra.retry import retry_while_down
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.record import ArtifactRef, Parent, Record
from resprout.tasks.core.data_scan import Scan
from resprout.tasks.core.job import SHARD_ROLE, Job, Progress, Share
from resprout.tasks.core.mlflow_log import DATA, flat, log_artifact, log_scan, profile, stage_note
from resprout.tasks.core.resources import Cost, metered, total
from resprout.tasks.core.stage import Input, Stage, Subfolder, ref_of
from resprout.tasks.core.time_left import TimeLeft, words

if TYPE_CHECKING:
    from prefect import Task

    from resprout.infra.mlflow.live_curves import LiveCurves
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore

T = TypeVar("T")
logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
"""Between two writes of a stage's progress to Prefect's server."""
FULL_DISK = ("no space left on device", "os error 28")
NO_MEMORY = ("out of memory", "can't allocate memory")

_COMPUTING = threading.Lock()
"""torch's default dtype and the seeds belong to the process: of its threads one computes, others transfer."""


class Display(Protocol):
    """Shows a person how far the stages are."""

    def started(self, label: str) -> Progress:
        """A stage begins its work; the returned progress draws its bar or prints its lines."""

    def waiting(self, stage: str) -> None:
        """Another run is computing this stage."""

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """A stage ended, or was found in the cache."""


class FanOut(Protocol):
    """Has shards made, here or elsewhere."""

    def __call__(
        self,
        stage: Stage[Any],
        jobs: Sequence[Job[Any]],
        inputs: Mapping[str, Input],
        role: str,
        progress: Progress,
    ) -> list[ArtifactRef]:
        """The artifact of `stage` for each of `jobs`, in their order; all are tried before one fails."""
        ...


@dataclass(frozen=True)
class Nested:
    """The MLflow run of a stage, and the page of the run that made its artifact, where that was another."""

    run_id: str
    maker: str | None


@dataclass
class Run:
    """One flow run: `home` is the data folder, `mlflow_run_id` the parent of the stages' nested runs."""

    store: ArtifactStore
    tracker: Tracker
    locks: LeaseLockManager
    results: ArtifactResults
    display: Display
    home: Path
    mlflow_run_id: str
    retries: int = 3
    retry_delay_seconds: float = 2.0
    outage_seconds: float = 0.0
    """How long finished work waits for a store that is down."""
    tracked: set[tuple[str, str]] = field(default_factory=set)
    """Label and key of the stages that the MLflow run holds already, where the run was started before."""
    live: dict[str, LiveCurves] = field(default_factory=dict)
    """The curves of the stages, by label."""
    nested: dict[str, Nested] = field(default_factory=dict)
    """The MLflow runs of the stages, by label."""
    stages: list[StageResult] = field(default_factory=list)
    work_seconds: float = 0.0
    """Seconds inside stage bodies and their transfers: all else is orchestration."""
    cancelled: Callable[[], bool] = lambda: False
    """Whether the user pressed Ctrl-C. A library can swallow the exception (in a destructor, in a callback
    from C), so stages ask at their start, as they progress, and before they publish."""
    shards: int = 1
    """Parts into which a stage that can be shared out is split, where there is a `fan_out`."""
    fan_out: FanOut | None = None
    scan: Scan | None = None
    """Looks through each acquired data set."""

    def stop_if_cancelled(self) -> None:
        """Raise KeyboardInterrupt where Ctrl-C was pressed."""
        if self.cancelled():
            raise KeyboardInterrupt

    def keep(self, write: Callable[[], T]) -> T:
        """Return what `write` returns, which writes finished work to the store; wait through an outage."""
        return retry_while_down(write, self.outage_seconds, stop=self.stop_if_cancelled)

    def retried(self, name: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, as a task that Prefect tries again after transient faults."""
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        self.stop_if_cancelled()
        given = {**self._retries(), "persist_result": False, "cache_policy": NO_CACHE}
        return Task(fn=work, name=name, **given)()

    def _retries(self) -> dict[str, Any]:
        return {
            "retries": self.retries,
            "retry_delay_seconds": [self.retry_delay_seconds * 2**attempt for attempt in range(self.retries)],
            "retry_jitter_factor": 0.5,
            "retry_condition_fn": _is_transient,
        }

    def make(
        self, stage: Stage[Any], job: Job[Any], inputs: Mapping[str, Input], role: str = ""
    ) -> ArtifactRef:
        """The stage's artifact, found or made; `role` names the call where a run calls the stage twice."""
        label = stage.label(role)
        self.stop_if_cancelled()
        # Once, before the body: an edit while the stage runs must not be recorded as what ran.
        parts, files = stage.key_parts(job, inputs), stage.code_files(job.config)
        spent: list[Cost] = []
        began = time.perf_counter()

        key = stage.key_of(parts)
        curves = self.live[label] = self._curves(stage, inputs, key, role)

        def produce() -> dict[str, Any]:
            if overlooked := self.results.overlooked(key):
                return overlooked.model_dump(mode="json")
            with metered(job.device) as cost:
                spent.append(cost)
                return self._produce(stage, replace(job, watch=curves), inputs, parts, files, role)

        try:
            state = self._task(stage, produce, key, label)(return_state=True)
            self.work_seconds += sum(cost.seconds for cost in spent)
            made = ArtifactRef.model_validate(state.result(raise_on_failure=True))
        except BaseException as error:
            curves.end(error)
            raise
        # A cached reference still has the address of the store in which it was made.
        ref = made.model_copy(update={"uri": self.store.uri(made.digest)})
        cost = total(spent)
        self._add(stage, role, ref, cost or Cost(time.perf_counter() - began), cached=cost is None)
        curves.close()
        if (label, ref.key) not in self.tracked or curves.run_id is not None:
            self._track(stage, job, inputs, ref, role, cost)
        if cost is not None:
            self.tracker.has_done(self.mlflow_run_id, ref.record)
        return ref

    def _curves(self, stage: Stage[Any], inputs: Mapping[str, Input], key: str, role: str) -> LiveCurves:
        from resprout.infra.mlflow.live_curves import LiveCurves

        tags = {**_tags(stage, inputs, key, role), "resprout.cached": "false"}
        return LiveCurves(self.tracker, self.mlflow_run_id, stage.label(role), key, tags)

    def _task(
        self, stage: Stage[Any], produce: Callable[[], dict[str, Any]], key: str, label: str
    ) -> Task[[], dict[str, Any]]:
        from prefect import Task
        from prefect.cache_policies import CacheKeyFnPolicy
        from prefect.transactions import IsolationLevel

        policy = CacheKeyFnPolicy(cache_key_fn=lambda context, parameters: key).configure(
            isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=self.locks
        )
        task = Task(
            fn=produce,
            name=stage.name,
            task_run_name=label,
            cache_policy=policy,
            persist_result=True,
            result_serializer="json",
            cache_result_in_memory=False,
            **self._retries(),
        )
        # The constructor takes only storage saved on the server; ours is the run's own store and holds
        # credentials.
        task.result_storage = self.results
        return task

    def _produce(
        self,
        stage: Stage[Any],
        job: Job[Any],
        inputs: Mapping[str, Input],
        parts: Mapping[str, Any],
        files: dict[str, str],
        role: str,
    ) -> dict[str, Any]:
        key, label = stage.key_of(parts), stage.label(role)
        started = datetime.datetime.now(datetime.UTC)
        start = time.perf_counter()
        progress = ThrottledProgress(self.display.started(label), label, self.stop_if_cancelled)
        inputs = {**inputs, **self._shards(stage, job, inputs, role, progress)}
        guard = self.locks.guard(key)
        kept = StageCheckpoints(self.store, key, guard, self.stop_if_cancelled) if stage.resumes else None
        given = replace(
            job, digests={name: ref_of(one).digest for name, one in inputs.items()}, checkpoints=kept
        )
        with self.store.workdir() as workdir, ExitStack() as opened:
            content = workdir / "content"
            content.mkdir()
            try:
                with _COMPUTING if stage.computes else nullcontext():
                    stage.body(given, InputFolders(self.store, inputs, opened), content, progress)
            except BaseException as error:
                raise as_sentence(error, stage.name, self.home) from error
            self.stop_if_cancelled()
            manifest = self.keep(lambda: self.store.publish(content, guard, move=True))
        record = Record(
            stage=stage.name,
            key=key,
            kind=stage.kind,
            config=parts["config"],
            parents=tuple(
                Parent(role=name, digest=ref_of(one).digest, record=ref_of(one).record)
                for name, one in sorted(inputs.items())
            ),
            content=manifest.digest,
            manifest=manifest.sha256,
            seed=job.seed if stage.draws(job.config) else None,
            dtype=job.dtype if stage.computes else None,
            device=job.device if stage.computes else None,
            code={**identity.code_identity(), "reached": parts["code"]},
            libraries=parts["libraries"],
            machine=identity.machine(),
            who=identity.who(),
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 3),
            origin=_called(job.config, "origin"),
            licence=_called(job.config, "licence_note"),
            files=files,
        ).with_key_of(parts)
        # Killed between the two, a run leaves a record that nothing but this names; it is not worth the work.
        with suppress(Transient, Unreachable):
            self.tracker.announce(self.mlflow_run_id, record.id)
        record_id = self.keep(lambda: self.store.put_record(record))
        if kept is not None:
            # What is left of them is gc's.
            with suppress(Transient, Unreachable):
                kept.clear()
        return ArtifactRef(
            kind=stage.kind,
            digest=manifest.digest,
            key=key,
            record=record_id,
            uri=self.store.uri(manifest.digest),
            bytes=sum(entry.size for entry in manifest.files),
        ).model_dump(mode="json")

    def _shards(
        self,
        stage: Stage[Any],
        job: Job[Any],
        inputs: Mapping[str, Input],
        role: str,
        progress: Progress,
    ) -> dict[str, ArtifactRef]:
        """Artifacts of the stage's shards, by the roles in which its function is given them.

        They are no part of its key: the function writes the same bytes with and without them.
        """
        if self.fan_out is None or self.shards == 1 or stage.shard is None or not stage.splits(job.config):
            return {}
        jobs = [replace(job, share=Share(index, self.shards)) for index in range(self.shards)]
        read = stage.shard.reads or inputs
        given = {name: one for name, one in inputs.items() if name in read}
        made = self.fan_out(stage.shard, jobs, given, role, progress)
        return {f"{SHARD_ROLE}{index:06d}": ref for index, ref in enumerate(made)}

    def _add(self, stage: Stage[Any], role: str, ref: ArtifactRef, cost: Cost, cached: bool) -> None:
        result = StageResult(
            name=stage.label(role),
            stage=stage.name,
            role=role,
            cached=cached,
            seconds=round(cost.seconds, 3),
            cpu_seconds=None if cached else round(cost.cpu_seconds, 3),
            peak_memory_bytes=cost.peak_memory_bytes,
            artifact=ArtifactResult(kind=ref.kind, digest=ref.digest, uri=ref.uri),
        )
        self.stages.append(result)
        self.display.finished(result.name, cached, cost.seconds)

    def _track(
        self,
        stage: Stage[Any],
        job: Job[Any],
        inputs: Mapping[str, Input],
        ref: ArtifactRef,
        role: str,
        cost: Cost | None,
    ) -> None:
        tracker, cached, label = self.tracker, cost is None, stage.label(role)
        tags = {
            **_tags(stage, inputs, ref.key, role),
            "resprout.cached": str(cached).lower(),
            "resprout.digest": ref.digest,
            "resprout.uri": ref.uri,
            "resprout.record": ref.record,
        }
        producer = tracker.producer(ref.record) if cached else None
        if producer is not None:
            tags["resprout.produced_by_run"] = producer.info.run_id
        maker = run_page(producer.info.experiment_id, producer.info.run_id) if producer else None
        whole = run_page(tracker.experiment_id, self.mlflow_run_id)
        tags[NOTE] = stage_note(label, whole, ref.digest, cached, maker)
        curves = self.live[label]
        rest = curves.close()
        run_id = curves.run_id or tracker.start(label, tags, parent=self.mlflow_run_id)
        self.nested[label] = Nested(run_id, maker)
        with tracker.running(run_id):
            if curves.run_id is not None:
                tracker.log(run_id, tags=tags)
            tracker.log_points(run_id, rest)
            timing = {} if cost is None else cost.metrics()
            drawn = {"seed": job.seed} if stage.draws(job.config) else {}
            params = {**flat(stage.settings(job.config)), **drawn}
            log_artifact(self.store, tracker, run_id, ref, params, timing, curves.shown)
            if stage.kind in DATA:
                origin = _called(job.config, "origin") or {}
                for target in (run_id, self.mlflow_run_id):
                    tracker.log_dataset(target, role, ref.digest, origin, profile(origin))
                if self.scan is not None and not inputs:
                    log_scan(self.store, tracker, run_id, ref, self.scan)


class InputFolders(Mapping[str, Path]):
    """A stage's inputs as local folders by role; what the stage does not look at is not brought here."""

    def __init__(self, store: ArtifactStore, inputs: Mapping[str, Input], opened: ExitStack) -> None:
        self._store, self._inputs, self._opened = store, inputs, opened
        self._folders: dict[str, Path] = {}

    def __getitem__(self, role: str) -> Path:
        if role not in self._folders:
            given = self._inputs[role]
            folder = self._opened.enter_context(self._store.open(ref_of(given).digest))
            self._folders[role] = folder / given.path if isinstance(given, Subfolder) else folder
        return self._folders[role]

    def __contains__(self, role: object) -> bool:
        return role in self._inputs

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


class ThrottledProgress:
    """Progress to the display at once, to Prefect's progress artifact every few seconds."""

    def __init__(self, display: Progress, label: str, stop: Callable[[], None]) -> None:
        self.display = display
        self.stop = stop
        self.key = "".join(char if char.isalnum() else "-" for char in label.lower())
        self.shown = time.monotonic()
        self.left = TimeLeft()
        self.artifact: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        self.stop()
        self.display(done, total, what)
        left = words(self.left(done, total))
        if time.monotonic() - self.shown < PROGRESS_SECONDS:
            return
        self.shown = time.monotonic()
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent = 100.0 * done / max(total, 1)
        about = f"{what}, {left}" if left else what
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(progress=percent, key=self.key, description=about)
            else:
                update_progress_artifact(self.artifact, progress=percent, description=about)
        except Exception as error:
            # Hours of work do not end because a server that only watches restarts.
            logger.debug("Prefect did not take the progress of %s: %s", self.key, error)


def as_sentence(error: BaseException, stage_name: str, home: Path) -> BaseException:
    """StageFailed for a full memory or disk, everything else as it is."""
    if isinstance(error, ResproutError) or not isinstance(error, Exception):
        return error
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return StageFailed(
            f"{stage_name} ran out of memory; use smaller batches or sequences in its section, a smaller "
            "dtype, or a machine with more memory; finished stages are kept"
        )
    # Libraries in other languages (safetensors) raise errors of their own that only quote the system's.
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if full or any(words in text for words in FULL_DISK):
        return StageFailed(
            f"the disk of {home} is full in {stage_name}; free space there and run again; finished stages "
            "are kept"
        )
    return error


def _tags(stage: Stage[Any], inputs: Mapping[str, Input], key: str, role: str) -> dict[str, str]:
    """Tags of a stage's MLflow run that are known before it has an artifact."""
    return {
        "resprout.stage": stage.name,
        "resprout.role": role,
        "resprout.key": key,
        "resprout.kind": stage.kind,
        **{f"resprout.parent.{name}": ref_of(one).digest for name, one in inputs.items()},
    }


def _called(config: Any, method: str) -> Any:
    found = getattr(config, method, None)
    return found() if callable(found) else None


def _is_transient(task: Any, task_run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), Transient)
