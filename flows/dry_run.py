"""Dry run: which steps are cached, which would run, why, how long; shapes, sizes, memory. Loads no weights.

The steps of the run are looked up in the store one after another. A step whose inputs are all there has a
key; one that reads what is still to be made has none, and would run.

A stage's seconds, memory and bytes are predicted from what stages of its kind took on this machine
(`history.py`); why it is not found, from the nearest record (`nearest_record.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resprout.configs.load import Loaded
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.history import FOUND, ROWS, Estimate, History, Work, peaks, scales, total, volume
from resprout.flows.inputs import SOURCE, Sources, context, model_files
from resprout.flows.nearest_record import Nearest, nearest
from resprout.flows.stages import Artifacts, Step, Steps, job_of
from resprout.infra.environment import prepare
from resprout.infra.licences import check_licences
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire.model import quantisation
from resprout.tasks.acquire.source import Wanted, locate
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.core.stage import StepId
from resprout.tasks.evaluate.task_files import trusted_code
from resprout.tasks.export.format import own_classes
from resprout.tasks.gguf.types import bytes_per_weight, gguf_bytes
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.rounds import average_params, predicted_loss, schedule_of, target_at
from resprout.tasks.prune.target import implied_shape, request, warnings_for
from resprout.tasks.quantize.format import misfits
from resprout.tasks.quantize.names import judged

MOST_DIFFERENCES = 3
"""Differences from the nearest record that are named."""
HOUR = 3600.0
WEIGHTS = (".gguf", ".safetensors", ".bin")
"""Endings of files of weights."""


@dataclass(frozen=True)
class Forecast:
    """One step: whether it is cached, and what its key is made of."""

    step: Step
    cached: bool
    key: str
    """Its cache key; of a step that waits for others one that it shares with equal steps of other runs."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """The parts of its key, as far as its inputs are there."""
    waits_for: Mapping[str, str] = field(default_factory=dict)
    """Inputs that are still to be made, without which there is no cache key: by role the step's label."""
    bytes: int | None = None
    """Size of its artifact, where that is cached."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of all inputs."""
        return (*self.parts["parents"], *self.waits_for)


@dataclass(frozen=True)
class StagePlan:
    """What a run would do about one step, what that takes, and why."""

    forecast: Forecast
    estimate: Estimate
    nearest: Nearest | None = None
    """The nearest record of a stage that would run."""

    @property
    def reasons(self) -> list[str]:
        """Why the stage would run: stages before it, and what of its key differs from the nearest record."""
        one, near = self.forecast, self.nearest
        if one.cached:
            return []
        if near is None:
            return ["new"]
        waits = [f"after {', '.join(dict.fromkeys(one.waits_for.values()))}"] if one.waits_for else []
        found = [*map(str, near.differences)]
        if len(found) > MOST_DIFFERENCES:
            found[MOST_DIFFERENCES:] = [f"and {len(found) - MOST_DIFFERENCES} more"]
        return [*waits, *found] or ["the store no longer has it whole"]

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        one, takes = self.forecast, self.estimate
        return {
            "name": one.step.label,
            "stage": one.step.stage.name,
            "role": one.step.role,
            "cached": one.cached,
            "seconds": None if takes.seconds is None else round(takes.seconds, 1),
            "memory_bytes": takes.memory_bytes,
            "disk_bytes": takes.disk_bytes,
            "reasons": self.reasons,
            "waits_for": [*dict.fromkeys(one.waits_for.values())],
            "nearest_record": self.nearest.record_id if self.nearest else None,
            "differences": [one.as_dict() for one in self.nearest.differences] if self.nearest else [],
        }


def look_up(steps: Steps, store: ArtifactStore) -> tuple[Artifacts, list[Forecast]]:
    """Look each step up in the store; the artifacts that are there, and a forecast for each step."""
    results, artifacts = ArtifactResults.of(store), Artifacts(steps)
    device = preflight.device(steps.config.model.device)
    forecasts: dict[StepId, Forecast] = {}
    for step in steps:
        inputs = artifacts.inputs(step)
        waits = {role: forecasts[slot.step] for role, slot in step.inputs.items() if role not in inputs}
        parts = step.stage.key_parts(job_of(steps.config, step.section, device, step.seed), inputs)
        stand_ins = {"waits_for": {role: one.key for role, one in waits.items()}} if waits else {}
        key = step.stage.key_of({**parts, **stand_ins})
        found = None if waits else results.find(key)
        if found is not None:
            artifacts[step.id] = found
        size = found.bytes if found is not None else None
        labels = {role: one.step.label for role, one in waits.items()}
        forecasts[step.id] = Forecast(step, found is not None, key, parts, labels, size)
    return artifacts, [*forecasts.values()]


def to_make(forecasts: Iterable[Forecast]) -> list[bool]:
    """For each step that would run, whether it writes a model."""
    return [one.step.writes_model for one in forecasts if not one.cached]


class Outlook:
    """What runs on one store would take, by its records and by the memory that MLflow knows of them."""

    def __init__(self, store: ArtifactStore, tracker: Tracker) -> None:
        self.store = store
        self._records = [*store.records()]
        self._history = History(store, self._records, peaks(tracker))

    def plans(self, config: RunConfig, forecasts: Sequence[Forecast], dense: Shape | None) -> list[StagePlan]:
        """Plan each step of a run; `dense` is the source model, None where it is not known yet.

        The first stage that computes also waits for the libraries. Of a stage of which no record tells,
        memory and disk are those of the model.
        """
        calibration = next((one.parts["config"] for one in forecasts if one.step.stage is calibrate), None)
        rows = total([self._rows_bytes(one) for one in forecasts if one.step.stage in ROWS])
        needs = preflight.needs(config, dense, 0) if dense is not None else None
        size = dense.sizes(config.model.dtype).bytes if dense is not None else None
        waiting = self._history.start
        # Against runs on other models every part of a key would differ, which explains nothing.
        records = self._records if all(map(self._is_known, forecasts)) else []
        found = []
        for one in forecasts:
            if one.cached:
                found.append(StagePlan(one, FOUND))
                continue
            stage, section = one.step.stage, one.parts["config"]
            tokens = stage.tokens(section, volume(len(one.roles), calibration, rows))
            params = dense.params if dense is not None and scales(stage) else None
            takes = self._history.estimate(stage, section, Work(params, tokens))
            if tokens is None and stage.tokens(section, volume(len(one.roles), calibration, 1)) is not None:
                # It grows with rows that were never seen: those of other runs may be fewer or more.
                takes = replace(takes, seconds=None)
            if takes.seconds is not None and scales(stage):
                takes, waiting = replace(takes, seconds=max(takes.seconds, waiting)), 0.0
            if takes.memory_bytes is None and needs is not None and scales(stage):
                takes = replace(takes, memory_bytes=needs.memory)
            if takes.disk_bytes is None and one.step.writes_model:
                takes = replace(takes, disk_bytes=size)
            code = one.step.stage.code_files(one.step.section)
            near = nearest(one.step.id, {**one.parts, "files": code}, records, one.waits_for)
            found.append(StagePlan(one, takes, near))
        return found

    def _is_known(self, one: Forecast) -> bool:
        """Whether a run here has begun with this model; of what is no source model it is no question."""
        if one.cached or one.step.gives != SOURCE:
            return True
        name, config = one.step.stage.name, one.parts["config"]
        return any(old.stage == name and old.config == config for _, old in self._records)

    def _rows_bytes(self, one: Forecast) -> int | None:
        """Size of the rows that a step acquires, as it is or as the same sources had it before."""
        if one.bytes is not None:
            return one.bytes
        same = (old for _, old in reversed(self._records) if old.stage == one.step.stage.name)
        before = next((old.content for old in same if old.config == one.parts["config"]), None)
        return None if before is None else self._history.size(before)


def summary(plans: Iterable[StagePlan], price: float | None) -> dict[str, Any]:
    """How many stages are found and would run, and what they take together; what runs share counts once.

    Seconds are None where one of them is not known, and `seconds_known` are those of the others; `money` is
    their price, at `price` an hour.
    """
    once = {one.forecast.key: one for one in plans}.values()
    to_run = [one for one in once if not one.forecast.cached]
    seconds = [one.estimate.seconds for one in to_run]
    known = round(sum(filter(None, seconds)), 1)
    took = None if None in seconds else known
    return {
        "found": len(once) - len(to_run),
        "would_run": len(to_run),
        "seconds": took,
        "seconds_known": known,
        "unknown": [one.forecast.step.label for one in to_run if one.estimate.seconds is None],
        "memory_bytes": max((one.estimate.memory_bytes or 0 for one in to_run), default=0),
        "disk_bytes": sum(one.estimate.disk_bytes or 0 for one in to_run),
        "price_per_hour": price,
        "money": None if price is None or took is None else round(price * took / HOUR, 4),
    }


def forecast(loaded: Loaded, price: float | None = None) -> dict[str, Any]:
    """The plan of a run as plain data; loads no weights and changes nothing but the home folder's caches."""
    config = loaded.config
    prepare(config.infra, loaded.home)
    tracker = Tracker(config.infra.mlflow, loaded.home)
    store = ArtifactStore.from_config(config.infra.store, loaded.home, config.infra.proof)
    sources = Sources(loaded, tracker.uri)
    remarks = check_licences(config.infra.licences, sources.credits)
    slow = preflight.slow_dtype(config)
    artifacts, forecasts = look_up(Steps(config, sources.sections, sources.credits), store)
    plans = Outlook(store, tracker).plans(config, forecasts, sources.shape)
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
        "stages": [one.as_dict() for one in plans],
        **summary(plans, config.infra.price_per_hour if price is None else price),
        "widths": None,
        "trusted_code": [
            f"task {name}: {code.sentence}"
            for name, code in trusted_code(config.evaluate, loaded.base).items()
        ],
        "licences": remarks,
        "slow": slow,
    }
    if sources.shape is not None:
        found |= _sizes(loaded, sources.shape)
        found["file"] = _file(loaded, sources.shape)
        found["placement"] = _placement(config, sources.shape)
        found["journey"] = training_law(config, sources.shape, artifacts, store)
    if (plan := artifacts.named("plan")) is not None:
        found["plan"] = {"digest": plan.digest, "uri": plan.uri}
    return found


def _sizes(loaded: Loaded, dense: Shape) -> dict[str, Any]:
    config = loaded.config
    wanted = request(dense, config.prune, config.model.dtype)
    rounds, cut = rounds_of(config, dense)
    return {
        "dense": _shape(dense, config.model.dtype),
        "requested_params": wanted.limit,
        "pruned": _shape(cut, config.model.dtype) if cut else None,
        "schedule": config.prune.schedule,
        "rounds": rounds,
        "warnings": [
            *warnings_for(dense, wanted, config.prune.target, cut),
            *misfits(config.quantize.formats if config.quantize is not None else (), cut or dense),
        ],
    }


def _file(loaded: Loaded, dense: Shape) -> dict[str, Any] | None:
    """Bytes and formats of the file that came in and of the one that ships, as far as headers tell.

    None where the source is elsewhere, where widths depend on scores, and for formats of other programs.
    """
    config = loaded.config
    source = config.model.source
    place, (_, cut) = locate(source, context(loaded)), rounds_of(config, dense)
    if place is None or cut is None:
        return None
    files = model_files(source, place, Wanted("model")).values()
    weights = [path for path in files if path.suffix in WEIGHTS]
    came, ships = sum(path.stat().st_size for path in weights), judged(config.public())
    gguf = next((path for path in weights if path.suffix == ".gguf"), None)
    form = f"gguf:{quantisation(read_header(gguf)[0])}" if gguf is not None else "safetensors"
    size: float
    if ships is None:
        ships, size = (config.export.formats or ("hf",))[0], cut.sizes(config.model.dtype).bytes
    elif ships == form:
        # Tokenizer and embedding stay as they are.
        size = came - (dense.params - cut.params) * bytes_per_weight(ships.partition(":")[2])
    elif ships.startswith("gguf:"):
        size = gguf_bytes(ships.partition(":")[2], cut.params, cut.embedding_params)
    else:
        return None
    return {"source_format": form, "source_bytes": came, "format": ships, "bytes": round(size)}


def _placement(config: RunConfig, dense: Shape) -> dict[str, Any] | None:
    """Where the dense model's weights lie beside another model; None where it lies on one device."""
    found = preflight.spread_over(config, dense)
    if found is None:
        return None
    held = {str(one): size for one, size in found.held.items()}
    return {
        "held_bytes": held,
        "layers": {name: sum(str(one) == name for one in found.layers) for name in held},
        "refused": preflight.needs_whole(config) if found.offloads else [],
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
        budget = store.read_json(pool.digest, "metrics.json")["budget_tokens"]
    return None if budget is None else budget * config.recover.epochs
