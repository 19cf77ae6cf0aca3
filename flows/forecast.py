"""What a run would do, before a weight is loaded: cached or not, shapes, sizes, memory, seconds."""

from __future__ import annotations

from typing import Any

from resprout.configs.load import Loaded
from resprout.flows import preflight
from resprout.flows.durations import History, predicted
from resprout.flows.journey import journey, rounds_of
from resprout.flows.licences import check_licences
from resprout.flows.look_up import look_up
from resprout.flows.reasons import reason
from resprout.flows.sources import Sources
from resprout.infra.environment import prepare
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker
from resprout.tasks.export.registry import own_classes
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.target import request, warnings_for


def forecast(loaded: Loaded) -> dict[str, Any]:
    """The plan of a run as plain data; loads no weights and changes nothing but the home folder's caches."""
    config = loaded.config
    prepare(config.infra, loaded.home)
    tracker = Tracker(config.infra.mlflow, loaded.home)
    store = ArtifactStore.from_config(config.infra.store, loaded.home, config.infra.proof)
    sources = Sources(loaded, tracker.uri)
    remarks = check_licences(config.infra.licences, sources.credits)
    slow = preflight.slow_dtype(config.model)
    made, forecasts = look_up(config, store, tracker, sources, loaded.home)
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
                "name": one.label,
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
        found |= _sizes(loaded, sources.shape, preflight.models_to_make(forecasts))
        found["journey"] = journey(config, sources.shape, made, store)
    if made.plan.digest:
        found["plan"] = {"digest": made.plan.digest, "uri": made.plan.uri}
    return found


def _sizes(loaded: Loaded, dense: Shape, models: int) -> dict[str, Any]:
    config = loaded.config
    wanted = request(dense, config.prune, config.model.dtype)
    rounds, cut = rounds_of(config, dense)
    needs = preflight.needs(dense.params, config.model.dtype, models, config.recover)
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
