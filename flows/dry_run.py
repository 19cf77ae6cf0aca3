"""Dry run: which steps are cached, which would run, why, how long; shapes, sizes, memory. Loads no weights.

The steps of the run are looked up in the store one after another. A step whose inputs are all there has a
key; one that reads what is still to be made has none, and would run.

A stage's seconds are predicted from what stages of its kind took on this machine: the start of the processes
that it needs, and beyond that proportional to parameters times tokens, where it computes with a model.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import ResproutError
from resprout.configs.load import Loaded
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.inputs import Sources
from resprout.flows.stages import Artifacts, Step, Steps, job_of
from resprout.infra.environment import prepare
from resprout.infra.identity import machine
from resprout.infra.licences import check_licences
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.record import Record
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire.stage import acquire_rows
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.core.job import SHARD_ROLE
from resprout.tasks.core.mlflow_log import flat
from resprout.tasks.core.stage import Stage, Volume
from resprout.tasks.export.format import own_classes
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.rounds import average_params, predicted_loss, schedule_of, target_at
from resprout.tasks.prune.target import implied_shape, request, warnings_for

MOST_DIFFERENCES = 3
"""Differences from the nearest record that are named."""
LONG = 24
NEAR = 1.1
"""Work that differs by less is the same: then the time is that of the record."""


@dataclass(frozen=True)
class Forecast:
    """One step: whether it is cached, and what its key is made of."""

    step: Step
    cached: bool
    parts: Mapping[str, Any] = field(default_factory=dict)
    """The parts of its key, as far as its inputs are there."""
    waits_for: tuple[str, ...] = ()
    """Roles of the inputs that are still to be made, without which there is no key."""
    bytes: int | None = None
    """Size of its artifact, where that is cached."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of all inputs."""
        return (*self.parts["parents"], *self.waits_for)


def look_up(steps: Steps, store: ArtifactStore) -> tuple[Artifacts, list[Forecast]]:
    """Look each step up in the store; the artifacts that are there, and a forecast for each step."""
    results, artifacts = ArtifactResults.of(store), Artifacts(steps)
    device = preflight.device(steps.config.model.device)
    forecasts = []
    for step in steps:
        inputs = artifacts.inputs(step)
        missing = tuple(role for role in step.inputs if role not in inputs)
        parts = step.stage.key_parts(job_of(steps.config, step.section, device), inputs)
        found = None if missing else results.find(step.stage.key_of(parts))
        if found is not None:
            artifacts[step.id] = found
        size = found.bytes if found is not None else None
        forecasts.append(Forecast(step, found is not None, parts, missing, size))
    return artifacts, forecasts


def to_make(forecasts: Iterable[Forecast]) -> list[bool]:
    """For each step that would run, whether it writes a model."""
    return [one.step.writes_model for one in forecasts if not one.cached]


def forecast(loaded: Loaded) -> dict[str, Any]:
    """The plan of a run as plain data; loads no weights and changes nothing but the home folder's caches."""
    config = loaded.config
    prepare(config.infra, loaded.home)
    tracker = Tracker(config.infra.mlflow, loaded.home)
    store = ArtifactStore.from_config(config.infra.store, loaded.home, config.infra.proof)
    sources = Sources(loaded, tracker.uri)
    remarks = check_licences(config.infra.licences, sources.credits)
    slow = preflight.slow_dtype(config)
    artifacts, forecasts = look_up(Steps(config, sources.sections, sources.credits), store)
    records = [*store.records()]
    params = sources.shape.params if sources.shape is not None else None
    seconds = predicted(forecasts, History(store, records), params)
    method = resolve(config.prune)
    found: dict[str, Any] = {
        "name": config.name,
        "device": preflight.device(config.model.device),
        "method": {
            "name": method.method,
            "criterion": method.criterion,
            "allocator": method.allocator,
            "repair": method.repair,
            "layout": config.prune.layout,
            "units": list(config.prune.units),
        },
        "own_classes": own_classes(config.export.formats),
        "stages": [
            {
                "name": one.step.label,
                "stage": one.step.stage.name,
                "role": one.step.role,
                "cached": one.cached,
                "seconds": taken if taken is None else round(taken, 1),
                "reason": None if one.cached else reason(one, [record for _, record in records]),
            }
            for one, taken in zip(forecasts, seconds, strict=True)
        ],
        "seconds": None if None in seconds else round(sum(filter(None, seconds)), 1),
        "widths": None,
        "licences": remarks,
        "slow": slow,
    }
    if sources.shape is not None:
        found |= _sizes(loaded, sources.shape, sum(to_make(forecasts)))
        found["journey"] = training_law(config, sources.shape, artifacts, store)
    if (plan := artifacts.named("plan")) is not None:
        found["plan"] = {"digest": plan.digest, "uri": plan.uri}
    return found


def _sizes(loaded: Loaded, dense: Shape, models: int) -> dict[str, Any]:
    config = loaded.config
    wanted = request(dense, config.prune, config.model.dtype)
    rounds, cut = rounds_of(config, dense)
    needs = preflight.needs(config, dense, models)
    return {
        "dense": _shape(dense, config.model.dtype),
        "requested_params": wanted.limit,
        "pruned": _shape(cut, config.model.dtype) if cut else None,
        "schedule": config.prune.schedule,
        "rounds": rounds,
        "memory_bytes": needs.memory,
        "disk_bytes": needs.disk,
        "warnings": warnings_for(dense, wanted, config.prune.target, cut),
    }


def _shape(shape: Shape, dtype: str) -> dict[str, Any]:
    sizes = shape.sizes(dtype)
    return {
        "layers": shape.layers,
        "hidden": shape.hidden,
        "ffn": sorted(set(shape.ffn)),
        "kv_groups": sorted(set(shape.kv_heads)),
        "query_heads": sorted(set(shape.heads)),
        "params": sizes.params,
        "non_embedding_params": sizes.non_embedding_params,
        "bytes": sizes.bytes,
    }


def rounds_of(config: RunConfig, dense: Shape) -> tuple[list[dict[str, Any]], Shape | None]:
    """Each round's share of training and size, and the last one's shape; None where that depends on scores.

    A round that shrinks leaves all parameters in their places. Of sizes that depend on scores `params` is
    the limit, and `exact` is false.
    """
    found: list[dict[str, Any]] = []
    shape: Shape | None = None
    rounds, dtype = schedule_of(config.prune), config.model.dtype
    for one in rounds:
        target = target_at(config.prune.target, one.done, dense, dtype)
        section = config.prune.model_copy(update={"target": target})
        shape = implied_shape(dense, section, dtype, shape if one.shrink is None else None)
        limit = request(dense, section, dtype).limit
        shrinks = one.shrink is not None and one is not rounds[-1]
        left = dense.params if shrinks else limit if shape is None else shape.params
        exact = shrinks or shape is not None
        found.append({"train": one.train, "params": left, "exact": exact, "shrinks": shrinks})
    return found, shape


def training_law(
    config: RunConfig, dense: Shape, artifacts: Artifacts, store: ArtifactStore
) -> dict[str, Any] | None:
    """Average parameters over training, with one shot's; None: no training.

    The loss that they predict is None outside the law's range, and where the tokens are not known yet.
    """
    if config.recover is None or config.select is None:
        return None
    rounds, _ = rounds_of(config, dense)
    average = average_params(dense.params, [(one["train"], one["params"]) for one in rounds])
    tokens = _tokens(config, artifacts, store)
    at_once = rounds[-1]["params"]
    return {
        "tokens": tokens,
        "average_params": average,
        "loss": predicted_loss(average, tokens) if tokens else None,
        "one_shot_params": at_once,
        "one_shot_loss": predicted_loss(at_once, tokens) if tokens else None,
    }


def _tokens(config: RunConfig, artifacts: Artifacts, store: ArtifactStore) -> float | None:
    """Tokens of the whole recovery; None where they are a share of a pool that was not counted yet."""
    if config.select is None or config.recover is None:
        return None
    budget = config.select.budget_tokens
    pool = artifacts.named("pool")
    if budget is None and pool is not None:
        budget = json.loads(store.read(pool.digest, "metrics.json"))["budget_tokens"]
    return None if budget is None else budget * config.recover.epochs


def reason(one: Forecast, records: Sequence[Record]) -> str:
    """Name the differences from the nearest of the store's records; `one` is not in the cache."""
    if one.waits_for:
        *others, last = one.waits_for
        return f"its {', '.join(others)} and {last} are made first" if others else f"its {last} is made first"
    latest = sorted(
        (r for r in records if r.stage == one.step.stage.name), key=lambda r: r.started, reverse=True
    )
    if not latest:
        return "it never ran here"
    found = min(([*_differences(one.parts, record)] for record in latest), key=len)
    if not found:
        return "it ran on other hardware" if "hardware" in one.parts else "the store no longer has it whole"
    more = f" and {len(found) - MOST_DIFFERENCES} more" if len(found) > MOST_DIFFERENCES else ""
    return ", ".join(found[:MOST_DIFFERENCES]) + more


def _differences(parts: Mapping[str, Any], record: Record) -> Iterator[str]:
    then, now = flat(record.config), flat(parts["config"])
    for key in dict.fromkeys([*now, *then]):
        if then.get(key) != now.get(key):
            yield f"{key} {_short(then.get(key))} -> {_short(now.get(key))}"
    for key in ("seed", "dtype", "device"):
        if getattr(record, key) != parts.get(key):
            yield f"{key} {getattr(record, key)} -> {parts.get(key)}"
    inputs = {one.role: one.digest for one in record.parents if not one.role.startswith(SHARD_ROLE)}
    given = {role: digest for role, (digest, _) in parts["parents"].items()}
    for role in dict.fromkeys([*given, *inputs]):
        if inputs.get(role) != given.get(role):
            yield f"another {role}"
    for name, version in parts["libraries"].items():
        if record.libraries.get(name) != version:
            yield f"{name} {record.libraries.get(name)} -> {version}"
    if record.code.get("reached") != parts["code"]:
        yield "its code"


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONG else text[: LONG - 3] + "..."


@dataclass(frozen=True)
class Work:
    """Parameters and tokens on which a stage's time depends; None where unknown or irrelevant."""

    params: int | None
    tokens: float | None

    def times(self, other: Work) -> float:
        """How many times the work of `other` this is, by what is known of both."""
        pairs = ((self.params, other.params), (self.tokens, other.tokens))
        return math.prod(ours / theirs for ours, theirs in pairs if ours and theirs)


class History:
    """The stages that ran on this machine, by a store's records."""

    def __init__(self, store: ArtifactStore, records: Sequence[tuple[str, Record]]) -> None:
        self._store = store
        self._records = dict(records)
        self._params: dict[str, int | None] = {}
        host = machine()["host"]
        here = sorted(self._records.values(), key=lambda one: one.started)
        self._here = [one for one in here if one.machine.get("host") == host]
        self.start = self._start()

    def seconds(self, stage: Stage[Any], section: Mapping[str, Any], work: Work) -> float | None:
        """Predicted seconds, from the record nearest in methods, then in work, then in time; None without.

        `section` is the stage's config: what it names in words, say an allocator, decides more than sizes do.
        """
        known = [(one, self.work(stage, one)) for one in self._here if one.stage == stage.name]
        if not known:
            return None

        def distance(one: tuple[Record, Work]) -> tuple[int, float]:
            return len(_named(section) ^ _named(one[0].config)), abs(math.log(work.times(one[1])))

        nearest, done = min(reversed(known), key=distance)
        times = work.times(done)
        if max(times, 1 / times) < NEAR:
            return nearest.seconds
        start = self.start if stage.starts else 0.0
        return start + max(nearest.seconds - start, 0.0) * times

    def work(self, stage: Stage[Any], record: Record) -> Work:
        """The work behind a record of the stage."""
        behind = [record, *self._ancestors(record)]
        models = (one for one in behind if one.kind == "model" and not one.parents)
        # Beside the source there may be an encoder, whose size says nothing of the work.
        model = next((one for one in models if one.config.get("role") == "model"), None)
        calibration = next((one.config for one in behind if one.stage == calibrate.name), None)
        rows = next((self._size(one.content) for one in behind if one.stage == acquire_rows.name), None)
        return Work(
            params=self._params_of(model.content) if scales(stage) and model is not None else None,
            tokens=stage.tokens(record.config, volume(len(record.parents), calibration, rows)),
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
            if record.kind == "measurement":
                try:
                    details = json.loads(self._store.read(record.content, "details.json"))
                except ResproutError:
                    continue
                if found := details.get("start_seconds"):
                    return statistics.median(found.values())
        return 0.0


def predicted(forecasts: Sequence[Forecast], history: History, params: int | None) -> list[float | None]:
    """Seconds of each stage that would run, 0 of those in the cache; None where none of its kind ran here.

    The first stage that computes also waits for the libraries. `params` are the dense model's, None where
    they are not known yet.
    """
    calibration = next((one.parts["config"] for one in forecasts if one.step.stage is calibrate), None)
    rows = next((one.bytes for one in forecasts if one.step.stage is acquire_rows), None)
    found: list[float | None] = []
    waiting = history.start
    for one in forecasts:
        if one.cached:
            found.append(0.0)
            continue
        stage, section = one.step.stage, one.parts["config"]
        tokens = stage.tokens(section, volume(len(one.roles), calibration, rows))
        seconds = history.seconds(stage, section, Work(params if scales(stage) else None, tokens))
        if seconds is not None and scales(stage):
            seconds, waiting = max(seconds, waiting), 0.0
        found.append(seconds)
    return found


def scales(stage: Stage[Any]) -> bool:
    """Whether its time grows with the model."""
    return stage.computes or stage.writes_model


def volume(inputs: int, calibration: Mapping[str, Any] | None, rows: int | None) -> Volume:
    """Sizes known before a call, with the config of the calibration behind it."""
    seen = Volume(inputs, rows_bytes=rows)
    tokens = None if calibration is None else calibrate.tokens(calibration, seen)
    return seen._replace(calibration_tokens=tokens)


def _named(section: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, value) for key, value in flat(section).items() if isinstance(value, str)}
