"""What a schedule makes of the size over training, before anything runs: rounds, their average, the law."""

from __future__ import annotations

import json
from typing import Any

from resprout.configs.schema import RunConfig
from resprout.flows.steps import Made
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.rounds import average_params, predicted_loss, schedule_of, target_at
from resprout.tasks.prune.target import implied_shape, request


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


def journey(config: RunConfig, dense: Shape, made: Made, store: ArtifactStore) -> dict[str, Any] | None:
    """Average parameters over training, with one shot's; None: no training.

    The loss that they predict is None outside the law's range, and where the tokens are not known yet.
    """
    if config.recover is None or config.select is None:
        return None
    rounds, _ = rounds_of(config, dense)
    average = average_params(dense.params, [(one["train"], one["params"]) for one in rounds])
    tokens = _tokens(config, made, store)
    at_once = rounds[-1]["params"]
    return {
        "tokens": tokens,
        "average_params": average,
        "loss": predicted_loss(average, tokens) if tokens else None,
        "one_shot_params": at_once,
        "one_shot_loss": predicted_loss(at_once, tokens) if tokens else None,
    }


def _tokens(config: RunConfig, made: Made, store: ArtifactStore) -> float | None:
    """Tokens of the whole recovery; None where they are a share of a pool that was not counted yet."""
    if config.select is None or config.recover is None:
        return None
    budget = config.select.budget_tokens
    if budget is None and made.pool is not None and made.pool.digest:
        budget = json.loads(store.read(made.pool.digest, "metrics.json"))["budget_tokens"]
    return None if budget is None else budget * config.recover.epochs
