"""Rounds of a pruning schedule: when each one prunes, and how far; arithmetic alone, imports no torch.

All rounds but the last leave a model of the dense shape whose removed units are masked or shrunk; the last
one cuts. Shares of training are of all that the section `recover` asks for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.configs.stages import Unit
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.registry import SCHEDULES
from resprout.tasks.prune.resolve import resolve


@dataclass(frozen=True)
class Round:
    """One pruning: `train` of all training comes before it, and it goes `done` of the way to the target.

    `shrink`: units outside the plan lose this share of their readers' columns instead of all of it, and may
    come back; None: they are gone. `regrow`: this share of the kept units gives way to gone ones.
    """

    train: float
    done: float
    shrink: float | None = None
    regrow: float = 0.0


class Schedule(Protocol):
    """Says when and how far to prune."""

    units: ClassVar[tuple[Unit, ...]]
    """Kinds of units that it can remove round by round."""
    trains: ClassVar[bool]
    """Whether it means nothing without training between its rounds."""

    def all(self) -> list[Round]:
        """The rounds in their order; `train` never falls, and the last one is done."""
        ...


def schedule_of(config: PruneConfig) -> list[Round]:
    """The rounds of the schedule that a prune section names.

    Raises:
        BadInput: an unknown name or setting, a setting out of bounds, or units that it cannot remove.
    """
    settings = SCHEDULES.settings(config.schedule, config.schedule_settings)
    rounds = SCHEDULES.get(config.schedule)(**settings).all()
    if len(rounds) == 1:
        return rounds
    able = SCHEDULES.entry(config.schedule).declared["units"]
    if unable := [unit for unit in config.units if unit not in able]:
        raise BadInput(
            f"prune.schedule '{config.schedule}' is not for {' and '.join(unable)}, which prune.units names; "
            f"give units among {', '.join(able)}, or schedule: one_shot"
        )
    if config.memory == "stream":
        raise BadInput(
            f"prune.memory is stream, but prune.schedule '{config.schedule}' holds the whole model between "
            "its rounds; give memory: whole, or schedule: one_shot"
        )
    if config.target.latency_ms is not None:
        raise BadInput(
            f"prune.target is latency_ms, of which prune.schedule '{config.schedule}' cannot take a share "
            "before the dense model is timed; give latency_ratio, or schedule: one_shot"
        )
    if (repair := resolve(config).repair) != "none":
        raise BadInput(
            f"prune.repair is {repair}, but prune.schedule '{config.schedule}' takes what units gave away "
            "round by round, so that nothing is left to make good at the cut; give prune.repair: none, the "
            "training between rounds does that"
        )
    if any(one.regrow for one in rounds) and {"kv_groups", "heads"} <= set(config.units):
        raise BadInput(
            f"prune.units names kv_groups and heads, which prune.schedule '{config.schedule}' cannot regrow "
            "inside each other; give one of them"
        )
    return rounds


def gradual(name: str, rounds: int, begin: float, end: float) -> list[Round]:
    """The steps after t0 of eq. 1 of Zhu and Gupta (arXiv 1710.01878), with shares of training for times.

    s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3 is s_i at t0 = `begin`, where nothing is pruned. Step i
    of n comes at t0 + i dt, n dt = `end` - `begin`, and goes 1 - (1 - i / n)^3 of the way.

    Raises:
        BadInput: fewer than 2 rounds, or not 0 <= begin < end < 1.
    """
    if rounds < 2:
        raise BadInput(f"schedule '{name}' has rounds: {rounds}; give at least 2, or schedule: one_shot")
    if not 0 <= begin < end < 1:
        raise BadInput(
            f"schedule '{name}' has begin: {begin:g} and end: {end:g}; give shares of training with "
            "0 <= begin < end < 1, so that some of it follows the last round"
        )
    steps = [step / rounds for step in range(1, rounds + 1)]
    return [Round((1 - step) * begin + step * end, 1 - (1 - step) ** 3) for step in steps]


def target_at(target: TargetConfig, done: float, dense: Shape | None, dtype: str) -> TargetConfig:
    """The target of a round that is `done` of the way from the dense size, in what the target counts.

    `dense` is needed for targets in parameters or bytes; where it is None they stay as they are.
    """
    ((name, value),) = target.model_dump(exclude_none=True).items()
    ratio = name.endswith("_ratio")
    if done == 1 or (dense is None and not ratio):
        return target
    whole = 1.0 if ratio or dense is None else getattr(dense.sizes(dtype), name)
    left = whole + (value - whole) * done
    return TargetConfig.model_validate({name: left if ratio else math.floor(left)})
