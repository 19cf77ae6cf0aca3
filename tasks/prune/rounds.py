"""Rounds of a pruning schedule: when each one prunes, and how far; the training law over their sizes.

All rounds but the last leave a model of the dense shape whose removed units are masked or shrunk; the last
one cuts. Shares of training are of all that the section `recover` asks for. Arithmetic alone, without torch.

The law (Jin et al., ICLR 2025, arXiv 2501.12486) is Chinchilla's with the number of parameters averaged over
training in place of N: L = E + A / N_avg^alpha + B / D^beta, for models that are pruned while they train and
for those that are not. The coefficients are Chinchilla's own (Hoffmann et al., arXiv 2203.15556, approach 3)
in place of a fit of the paper's. They were fitted to pre-training from scratch, and outside the sizes and
data of that fit the law says nothing: for 32,768 tokens it would give 24.74 nats, where a uniform guess over
49,152 tokens has 10.80.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.interfaces import Round
from resprout.tasks.prune.registry import SCHEDULES

ENTROPY, SIZE, DATA = 1.69, 406.4, 410.7
"""E, A and B."""
ALPHA, BETA = 0.34, 0.28
PARAMS, TOKENS = (70e6, 16e9), (5e9, 500e9)
"""Sizes and data of the models that Chinchilla's coefficients were fitted to, least and most."""


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


def average_params(dense: int, rounds: Sequence[tuple[float, int]]) -> float:
    """Parameters averaged over training: `dense` up to the first round, then what each round leaves.

    Args:
        dense: Parameters before the first round.
        rounds: Of each the share of training before it, never falling, and the parameters after it.
    """
    total, since, size = 0.0, 0.0, dense
    for train, left in rounds:
        total += size * (train - since)
        since, size = train, left
    return total + size * (1 - since)


def predicted_loss(average: float, tokens: float) -> float | None:
    """Nats a token by the law, of `average` parameters after `tokens` tokens; None outside its range."""
    if not (PARAMS[0] <= average <= PARAMS[1] and TOKENS[0] <= tokens <= TOKENS[1]):
        return None
    return ENTROPY + SIZE / average**ALPHA + DATA / tokens**BETA
