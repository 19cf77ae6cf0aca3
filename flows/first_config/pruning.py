"""Choose the section `prune` for a model: method, units, target and rounding that its widths can reach."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig
from resprout.flows.first_config.goal import Goal
from resprout.flows.first_config.section import Written
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.target import MISS, check_timed, gutted, implied_shape, request

METHODS: tuple[Mapping[str, Any], ...] = (
    {"method": "recommended"},
    {"method": "recommended_per_layer"},
    {"method": "activation"},
    {"method": "activation", "layout": "per_layer"},
    {"method": "magnitude", "units": ["ffn"]},
    {"method": "magnitude", "units": ["ffn", "experts"]},
    {"method": "magnitude"},
    {"method": "magnitude", "layout": "per_layer"},
)
"""What is tried in turn: models whose layers differ need the second, goals beyond the FFN attention as well,
and mixtures of experts, whose channels no activation-based method scores, the last."""
TIMED: tuple[Mapping[str, Any], ...] = ({"method": "ziplm"}, {"method": "ziplm", "units": ["ffn"]})
"""Of the methods whose allocators spend milliseconds."""
ROUNDING = (128, 64, 32, 16, 8, 4, 2, 1)
FEWEST_STEPS = 8
"""Widths that differ by layer are multiples of no more than this part of the present width."""
KEPT = (0.9, 0.91, 0.92, 0.89, 0.88)
"""Without a goal: about a tenth smaller, as near as a good rounding comes."""
MANY_EMBEDDINGS = 1 / 3
"""From this share on a tenth of the model would be too much of its layers."""


def choose_pruning(shape: Shape | None, goal: Goal | None, dtype: str) -> Written:
    """The section `prune`: the first method that suits the model and reaches the goal.

    Raises:
        BadInput: none does.
    """
    if shape is None:
        return _unseen(goal)
    timed = goal is not None and goal.timed
    try:
        if timed:
            check_timed(shape)
        suited = _suited(shape, TIMED if timed else METHODS, dtype)
        return _first(suited, shape, goal, dtype)
    except BadInput as error:
        if goal is None:
            raise
        raise BadInput(f"--goal is '{goal.text}', which does not suit this model: {error}") from None


def _suited(shape: Shape, methods: Sequence[Mapping[str, Any]], dtype: str) -> list[Mapping[str, Any]]:
    """The methods that can prune this model, whatever the size; BadInput where none can."""
    found, refused = [], BadInput("")
    for one in methods:
        try:
            request(shape, _section({**one, "target": {"params": shape.params}, "round_to": 1}), dtype)
            found.append(one)
        except BadInput as error:
            refused = error
    if not found:
        raise refused
    return found


def _first(methods: Sequence[Mapping[str, Any]], shape: Shape, goal: Goal | None, dtype: str) -> Written:
    """The first method that reaches the goal; where none does, BadInput of the last, which goes furthest."""
    refused = BadInput("")
    for one in methods:
        try:
            return _with_rounding(shape, one, goal, dtype)
        except BadInput as error:
            refused = error
    raise refused


def _section(given: Mapping[str, Any]) -> PruneConfig:
    return PruneConfig.model_validate(given)


def _with_rounding(shape: Shape, method: Mapping[str, Any], goal: Goal | None, dtype: str) -> Written:
    """The method with the coarsest rounding that comes near the goal, else the one that comes nearest."""
    found: list[tuple[float, dict[str, Any], Shape | None]] = []
    refused = BadInput("")
    for round_to in ROUNDING:
        for target in [goal.target] if goal is not None else _wishes(shape):
            given = {**method, "target": target, "round_to": round_to}
            try:
                miss, reached = _miss(shape, given, dtype)
            except BadInput as error:
                refused = error
                continue
            found.append((miss, given, reached))
            if miss <= MISS:
                return _explained(shape, given, reached, goal, dtype)
    if not found:
        raise refused
    _, given, reached = min(found, key=lambda one: one[0])
    return _explained(shape, given, reached, goal, dtype)


def _wishes(shape: Shape) -> Iterator[dict[str, float]]:
    many = shape.embedding_params / shape.params > MANY_EMBEDDINGS
    yield from ({"non_embedding_ratio" if many else "params_ratio": kept} for kept in KEPT)


def _miss(shape: Shape, given: Mapping[str, Any], dtype: str) -> tuple[float, Shape | None]:
    """By what share of the model rounding misses the target, and the shape that it leads to."""
    config = _section(given)
    reached = implied_shape(shape, config, dtype)
    if reached is not None:
        whole = shape.non_embedding_params if config.target.non_embedding_ratio is not None else shape.params
        return (request(shape, config, dtype).limit - reached.params) / whole, reached
    fits = "ffn" not in config.units or min(shape.ffn) // config.round_to >= FEWEST_STEPS
    return (0.0 if fits or config.round_to == 1 else 1.0), None


def _explained(
    shape: Shape, given: dict[str, Any], reached: Shape | None, goal: Goal | None, dtype: str
) -> Written:
    config = _section(given)
    if goal is None and reached is not None:
        ((key, _),) = given["target"].items()
        given["target"] = {key: math.ceil(_kept(shape, reached, key) * 1000) / 1000}
    why = [_asked(shape, goal)]
    if reached is not None:
        why.append(_widths(shape, reached))
        why += gutted(shape, request(shape, config, dtype), config.target)
    why += _method(shape, config)
    section = {"method": config.method, "units": list(config.units), **given}
    return Written("prune", why, section)


def _kept(shape: Shape, reached: Shape, key: str) -> float:
    if key == "non_embedding_ratio":
        return reached.non_embedding_params / shape.non_embedding_params
    return reached.params / shape.params


def _asked(shape: Shape, goal: Goal | None) -> str:
    """What the target stands for."""
    if goal is not None and goal.timed:
        return (
            f"goal {goal.text}: a forward pass in {goal.value} of the time, by a table of layers that is "
            "measured on the machine of the run"
        )
    if goal is not None:
        return f"goal {goal.text}" + (", in the dtype of the model" if goal.key == "bytes" else "")
    if shape.embedding_params / shape.params > MANY_EMBEDDINGS:
        return (
            f"no --goal: about a tenth of what is not embeddings, which hold "
            f"{shape.embedding_params / shape.params:.0%} of this model and stay"
        )
    return "no --goal: about a tenth of the model"


def _widths(shape: Shape, reached: Shape) -> str:
    """From which widths to which, where all layers are alike."""
    changed = [
        f"{name} {before[0]:,} to {after[0]:,}"
        for name, before, after in (
            ("FFN width", shape.ffn, reached.ffn),
            ("KV groups", shape.kv_heads, reached.kv_heads),
            ("experts", shape.experts, reached.experts),
        )
        if before != after
    ]
    kept = f"{reached.params / 1e6:,.2f} M of {shape.params / 1e6:,.2f} M parameters stay"
    return f"{', '.join(changed) or 'no width changes'}: {kept}"


def _method(shape: Shape, config: PruneConfig) -> list[str]:
    """Why this method, and what its layout means."""
    why = []
    if config.method == "magnitude" and shape.experts:
        why.append("magnitude: channels inside experts are scored by their weights alone")
    elif "kv_groups" in config.units and not config.target.timed:
        why.append(f"{config.method}: FFN channels alone do not reach the goal")
    elif not shape.uniform:
        why.append(f"{config.method}: the layers of this model have widths of their own")
    if config.layout == "per_layer":
        why.append("each layer gets a width of its own, which the format hf_layouts holds (tasks/README.md)")
    return why


def _unseen(goal: Goal | None) -> Written:
    """The section for a model whose widths are not known yet."""
    target = goal.target if goal is not None else {"params_ratio": KEPT[0]}
    method = TIMED[0] if goal is not None and goal.timed else METHODS[0]
    why = ["the widths are in the header of a file that is not here, so nothing was fitted to them"]
    return Written("prune", why, {**method, "target": target, "round_to": ROUNDING[0]})
