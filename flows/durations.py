"""Seconds that the stages of a run would take here, from what stages of their kind took on this machine.

A stage's time is taken to be the start of the processes that it needs, and beyond that proportional to
parameters times tokens, where it computes with a model.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import ResproutError
from resprout.infra.identity import machine
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.models.shape import shape_of
from resprout.tasks.run import Forecast
from resprout.tasks.track import flat

ACQUIRED, CALIBRATED, MEASURED, ROWS = "acquire_model", "calibrate", "measure", "acquire_rows"
STARTING = {MEASURED, "export"}
"""Stages that start a process of their own."""
ITEM_TOKENS = 64
"""Of a zero-shot question with its answers; only the ratio between two numbers of questions counts."""
NEAR = 1.1
"""Work that differs by less is the same: then the time is that of the record."""


@dataclass(frozen=True)
class Work:
    """What a stage's time depends on; None where it is not known or does not matter."""

    params: int | None
    tokens: float | None

    def times(self, other: Work) -> float:
        """How many times the work of `other` this is, by what is known of both."""
        pairs = ((self.params, other.params), (self.tokens, other.tokens))
        return math.prod(ours / theirs for ours, theirs in pairs if ours and theirs)


class History:
    """What a store's records tell of the stages that ran on this machine."""

    def __init__(self, store: ArtifactStore, records: Sequence[tuple[str, Record]]) -> None:
        self._store = store
        self._records = dict(records)
        self._params: dict[str, int | None] = {}
        host = machine()["host"]
        here = sorted(self._records.values(), key=lambda one: one.started)
        self._here = [one for one in here if one.machine.get("host") == host]
        self.start = self._start()

    def seconds(self, stage: str, section: Mapping[str, Any], work: Work) -> float | None:
        """Predicted seconds, from the record nearest in methods, then in work, then in time; None without.

        `section` is the stage's config: what it names in words, say an allocator, decides more than sizes do.
        """
        known = [(one, self.work(one)) for one in self._here if one.stage == stage]
        if not known:
            return None

        def distance(one: tuple[Record, Work]) -> tuple[int, float]:
            return len(_named(section) ^ _named(one[0].config)), abs(math.log(work.times(one[1])))

        nearest, done = min(reversed(known), key=distance)
        times = work.times(done)
        if max(times, 1 / times) < NEAR:
            return nearest.seconds
        start = self.start if stage in STARTING else 0.0
        return start + max(nearest.seconds - start, 0.0) * times

    def work(self, record: Record) -> Work:
        """The work that a record tells of."""
        behind = [record, *self._ancestors(record)]
        model = next((one for one in behind if one.stage == ACQUIRED and one.config["role"] == "model"), None)
        calibration = next((tokens_of(one.config) for one in behind if one.stage == CALIBRATED), None)
        rows = next((self._size(one.content) for one in behind if one.stage == ROWS), None)
        scales = record.dtype is not None or record.stage == ACQUIRED
        roles = [parent.role for parent in record.parents]
        return Work(
            params=self._params_of(model.content) if scales and model is not None else None,
            tokens=amount(record.config, roles, calibration, rows),
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
                self._params[digest] = shape_of(json.loads(self._store.read(digest, "config.json"))).params
            except ResproutError:
                # Collected or erased; the time still counts for models of unknown size.
                self._params[digest] = None
        return self._params[digest]

    def _size(self, digest: str) -> int | None:
        try:
            return self._store.manifest(digest).total_bytes
        except ResproutError:
            return None

    def _start(self) -> float:
        """Seconds until a process with a model's libraries can work, as the last measurement found."""
        for record in reversed(self._here):
            if record.stage == MEASURED:
                try:
                    told = json.loads(self._store.read(record.content, "details.json"))
                except ResproutError:
                    continue
                if found := told.get("start_seconds"):
                    return statistics.median(found.values())
        return 0.0


def predicted(forecasts: Sequence[Forecast], history: History, params: int | None) -> list[float | None]:
    """Seconds of each stage that would run, 0 of those in the cache; None where none of its kind ran here.

    The first stage that computes also waits for the libraries. `params` are the dense model's, None where
    they are not known yet.
    """
    calibration = next((tokens_of(one.parts["config"]) for one in forecasts if one.stage == CALIBRATED), None)
    rows = next((one.bytes for one in forecasts if one.stage == ROWS), None)
    found: list[float | None] = []
    waiting = history.start
    for one in forecasts:
        if one.cached:
            found.append(0.0)
            continue
        scales = "dtype" in one.parts or one.stage == ACQUIRED
        roles = [*one.parts["parents"]]
        tokens = amount(one.parts["config"], roles, calibration, rows)
        work = Work(params if scales else None, tokens)
        seconds = history.seconds(one.stage, one.parts["config"], work)
        if seconds is not None and scales:
            seconds, waiting = max(seconds, waiting), 0.0
        found.append(seconds)
    return found


def _named(section: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, value) for key, value in flat(section).items() if isinstance(value, str)}


def tokens_of(calibration: Mapping[str, Any]) -> float:
    """Tokens of calibration."""
    return float(calibration["samples"] * calibration["seq_len_tokens"])


def amount(
    section: Mapping[str, Any], roles: Sequence[str], calibration: float | None, rows: int | None
) -> float | None:
    """Tokens that a stage goes through, or what grows with them; None where that is not known before."""
    if "seq_len_tokens" in section:
        return tokens_of(section)
    if "prefill_tokens" in section:
        each = section["prefill_tokens"] + section["decode_tokens"]
        return float(len(roles) * section["repeats"] * section["batch_size"] * each)
    if "perplexity" in section:
        asked = section.get("zero_shot") or {"limit": 0, "tasks": ()}
        limits = (section["perplexity"]["limit_tokens"], asked["limit"])
        if None in limits:
            return None
        return float(limits[0] + ITEM_TOKENS * limits[1] * len(asked["tasks"]))
    if "epochs" in section:
        return section["epochs"] * rows if rows else None
    if "budget_ratio" in section:
        return rows
    return calibration if "calibration" in roles else None
