"""What all stages of one flow run share: store, tracker, locks, retries, and the list of what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from resprout.configs.result import ArtifactResult, StageResult
from resprout.infra.retry import retry_while_down
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.cost import Cost
from resprout.tasks.job import Progress
from resprout.tasks.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.infra.tracking import Tracker
    from resprout.tasks.job import Job
    from resprout.tasks.stage import Input, Stage


T = TypeVar("T")


class Display(Protocol):
    """Shows a person how far the stages are."""

    def started(self, label: str) -> Progress:
        """A stage begins its work; the returned progress draws its bar or prints its lines."""

    def waiting(self, stage: str) -> None:
        """Another run is making what the stage would make."""

    def finished(self, label: str, cached: bool, seconds: float) -> None:
        """A stage ended, or was found in the cache."""


class FanOut(Protocol):
    """Has shards made, here or elsewhere."""

    def __call__(
        self,
        stage: Stage[Any],
        jobs: Sequence[Job[Any]],
        inputs: Mapping[str, Input],
        label: str,
        progress: Progress,
    ) -> list[ArtifactRef]:
        """The artifact of `stage` for each of `jobs`, in their order; all are tried before one fails."""
        ...


@dataclass(frozen=True)
class Forecast:
    """What a stage would do: nothing, where its artifact is in the store already."""

    label: str
    stage: str
    cached: bool
    parts: Mapping[str, Any] = field(default_factory=dict)
    """What its key is made of."""
    waits_for: tuple[str, ...] = ()
    """Roles of the inputs that are not made yet, without which there is no key."""
    bytes: int | None = None
    """Size of its artifact, where that is cached."""


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
    """Label and key of the stages that the MLflow run holds already, where the run was begun before."""
    nested: dict[str, Nested] = field(default_factory=dict)
    """The MLflow runs of the stages, by label."""
    stages: list[StageResult] = field(default_factory=list)
    work_seconds: float = 0.0
    """Seconds inside stage bodies and their transfers: all else is orchestration."""
    cancelled: Callable[[], bool] = lambda: False
    """Whether the user pressed Ctrl-C. A library can swallow the exception (in a destructor, in a callback
    from C), so stages ask at their start, as they progress, and before they publish."""
    look_up_only: bool = False
    """Stages only say what they would do, in `forecasts`."""
    forecasts: list[Forecast] = field(default_factory=list)
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
        """What `write` returns, which writes finished work to the store; an outage is waited for."""
        return retry_while_down(write, self.outage_seconds, stop=self.stop_if_cancelled)

    def add(self, label: str, ref: ArtifactRef, cost: Cost, cached: bool) -> None:
        """Note a finished stage."""
        result = StageResult(
            name=label,
            cached=cached,
            seconds=round(cost.seconds, 3),
            cpu_seconds=None if cached else round(cost.cpu_seconds, 3),
            peak_memory_bytes=cost.peak_memory_bytes,
            artifact=ArtifactResult(kind=ref.kind, digest=ref.digest, uri=ref.uri),
        )
        self.stages.append(result)
        self.display.finished(label, cached, cost.seconds)
