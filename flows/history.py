"""What stages took on this machine, by a store's records: the seconds, memory and bytes to expect of others.

Seconds are the start of the processes that a stage needs, and beyond that proportional to parameters times
tokens, where it computes with a model.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from resprout.configs.errors import ResproutError
from resprout.flows.preflight import WORKING_BYTES
from resprout.infra.identity import machine
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire.stage import acquire_documents, acquire_rows
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.core.mlflow_log import flat
from resprout.tasks.core.stage import Stage, Volume
from resprout.tasks.models.shape import shape_of

if TYPE_CHECKING:
    from resprout.infra.mlflow.tracking import Tracker

PEAK = "stage_peak_memory_mb"
"""Metric of a stage's run in MLflow (`tasks.core.resources`)."""
NEAR = 1.1
"""Work that differs by less is the same: then the time is that of the record."""


@dataclass(frozen=True)
class Work:
    """Parameters and tokens on which a stage's time depends; None where unknown or irrelevant."""

    params: int | None
    tokens: float | None

    def times(self, other: Work) -> float:
        """How many times the work of `other` this is, by what is known of both."""
        pairs = ((self.params, other.params), (self.tokens, other.tokens))
        return math.prod(ours / theirs for ours, theirs in pairs if ours and theirs)


class Precedent(NamedTuple):
    """The record by which a stage is predicted, and how many times its work is to be done."""

    record_id: str
    record: Record
    times: float


@dataclass(frozen=True)
class Estimate:
    """What a stage takes, or a run: seconds, bytes of memory at the peak, bytes that stay on disk.

    None where no record tells.
    """

    seconds: float | None
    memory_bytes: int | None
    disk_bytes: int | None


ROWS = (acquire_rows, acquire_documents)
"""Stages that bring what a selection chooses from, with whose size its work grows."""
FOUND = Estimate(0.0, 0, 0)
"""A stage that is in the cache."""


class History:
    """The stages that ran on this machine, by a store's records.

    `peak_of` knows the peak memory of the execution behind a record, which the records leave out.
    """

    def __init__(
        self,
        store: ArtifactStore,
        records: Sequence[tuple[str, Record]],
        peak_of: Callable[[str], int | None] = lambda record_id: None,
    ) -> None:
        self._store = store
        self._records = dict(records)
        self._peak_of = peak_of
        self._params: dict[str, int | None] = {}
        host = machine()["host"]
        here = sorted(self._records.items(), key=lambda one: one[1].started)
        self._here = [one for one in here if one[1].machine.get("host") == host]
        self.start = self._start()

    def estimate(self, stage: Stage[Any], section: Mapping[str, Any], work: Work) -> Estimate:
        """Predict a call of the stage with this section of settings."""
        found = self.precedent(stage, section, work)
        if found is None:
            return Estimate(None, None, None)
        made = self.size(found.record.content)
        peak = self._peak_of(found.record_id)
        models = self.work(stage, found.record).params
        ratio = work.params / models if work.params and models else 1.0
        return Estimate(
            self._seconds(stage, found),
            # What every process holds does not grow with the model.
            None if peak is None else round(WORKING_BYTES + (peak - WORKING_BYTES) * ratio),
            None if made is None else round(made * (ratio if stage.writes_model else 1.0)),
        )

    def precedent(self, stage: Stage[Any], section: Mapping[str, Any], work: Work) -> Precedent | None:
        """The record of the stage nearest in methods, then in work, then in time; None where there is none.

        `section` is the stage's config: what it names in words, say an allocator, decides more than sizes do.
        """

        def distance(one: Precedent) -> tuple[int, float]:
            return len(_named(section) ^ _named(one.record.config)), abs(math.log(one.times))

        known = [
            Precedent(identity, one, work.times(self.work(stage, one)))
            for identity, one in self._here
            if one.stage == stage.name
        ]
        return min(reversed(known), key=distance, default=None)

    def _seconds(self, stage: Stage[Any], found: Precedent) -> float:
        if max(found.times, 1 / found.times) < NEAR:
            return found.record.seconds
        start = self.start if stage.starts else 0.0
        return start + max(found.record.seconds - start, 0.0) * found.times

    def work(self, stage: Stage[Any], record: Record) -> Work:
        """The work behind a record of the stage."""
        behind = [record, *self._ancestors(record)]
        models = (one for one in behind if one.kind == "model" and not one.parents)
        # Beside the source there may be an encoder, whose size says nothing of the work.
        model = next((one for one in models if one.config.get("role") == "model"), None)
        calibration = next((one.config for one in behind if one.stage == calibrate.name), None)
        acquired = [stage.name for stage in ROWS]
        rows = [self.size(one.content) for one in behind if one.stage in acquired]
        return Work(
            params=self._params_of(model.content) if scales(stage) and model is not None else None,
            tokens=stage.tokens(record.config, volume(len(record.parents), calibration, total(rows))),
        )

    def _ancestors(self, record: Record) -> Iterable[Record]:
        level, seen = [record], set[str]()
        while level:
            parents = [parent.record for one in level for parent in one.parents if parent.record not in seen]
            seen.update(parents)
            level = [self._records[one] for one in dict.fromkeys(parents) if one in self._records]
            yield from level

    def _params_of(self, digest: str) -> int | None:
        if digest not in self._params:
            try:
                self._params[digest] = shape_of(self._store.read_json(digest, "config.json")).params
            except ResproutError:
                # Collected or erased; the time still counts for models of unknown size.
                self._params[digest] = None
        return self._params[digest]

    def size(self, digest: str) -> int | None:
        """Size of an artifact in bytes; None if the store no longer has it."""
        try:
            return self._store.manifest(digest).total_bytes
        except ResproutError:
            return None

    def _start(self) -> float:
        """Seconds until a process with a model's libraries can work, as the last measurement found."""
        for _, record in reversed(self._here):
            if record.kind == "measurement":
                try:
                    details = self._store.read_json(record.content, "details.json")
                except ResproutError:
                    continue
                if found := details.get("start_seconds"):
                    return statistics.median(found.values())
        return 0.0


def peaks(tracker: Tracker) -> Callable[[str], int | None]:
    """Return the peak memory in bytes of the execution that wrote a record, None where MLflow does not say.

    MLflow is asked at the first call, which takes a second; a database that is not there is not made.
    """

    @functools.cache
    def connected() -> bool:
        if tracker.files.own and not (tracker.home / "mlflow.db").is_file():
            return False
        try:
            tracker.connect(read_only=True)
        except ResproutError:
            return False
        return True

    def peak_of(record_id: str) -> int | None:
        try:
            maker = tracker.producer(record_id) if connected() else None
        except ResproutError:
            return None
        peak = maker.data.metrics.get(PEAK) if maker is not None else None
        return None if peak is None else round(peak * 1e6)

    return peak_of


def scales(stage: Stage[Any]) -> bool:
    """Whether its time grows with the model."""
    return stage.computes or stage.writes_model


def total(sizes: Sequence[int | None]) -> int | None:
    """Bytes of all together; None where there is none, or one is not known."""
    known = [one for one in sizes if one is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def volume(inputs: int, calibration: Mapping[str, Any] | None, rows: int | None) -> Volume:
    """Sizes known before a call, with the config of the calibration behind it."""
    seen = Volume(inputs, rows_bytes=rows)
    tokens = None if calibration is None else calibrate.tokens(calibration, seen)
    return seen._replace(calibration_tokens=tokens)


def _named(section: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, value) for key, value in flat(section).items() if isinstance(value, str)}
