"""The rounds of a pruning schedule but the last, which is the run's own `score`, `plan` and `prune`: wiring.

Each round ends in an artifact of the dense shape, so that every plan is for the dense model. Training between
rounds is the recover stage's, each with its share of the steps, one after another through the same batches
and one schedule of the learning rate. The rows that it trains on are selected once, on the model masked
at once to the whole target before any training.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from resprout.flows.acquisition import shape_in_store
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.prune.between import Masking, Regrowth, mask, regrow
from resprout.tasks.prune.rounds import Round, schedule_of, target_at
from resprout.tasks.prune.stage import plan, score
from resprout.tasks.stage import Input, Part

if TYPE_CHECKING:
    from resprout.flows.steps import Steps

GROWTH = {"criterion": "gradient", "criterion_settings": {}}
"""What values units that are gone, in place of the section's own criterion."""


@dataclass(frozen=True)
class Begun:
    """What a round begins with: a model, the plan `before` it (empty: nothing is gone), training so far."""

    model: Input
    before: dict[str, Input] = field(default_factory=dict)
    selection: ArtifactRef | None = None
    trained: float = 0.0
    trainings: tuple[ArtifactRef, ...] = ()
    schedule: str | None = None
    """Its name where there are rounds before the last."""


def before_last(steps: Steps, calibration: ArtifactRef) -> Begun:
    """What the last round begins with; of one_shot, which has no other, the dense model."""
    rounds = schedule_of(steps.config.prune)
    begun = Begun(steps.dense)
    if len(rounds) > 1:
        chosen = _selection(steps, calibration) if steps.recovers else None
        begun = replace(begun, selection=chosen, schedule=steps.config.prune.schedule)
    for number, one in enumerate(rounds, 1):
        begun = _trained(steps, begun, one.train, number)
        if number < len(rounds):
            begun = _pruned(steps, begun, one, number, calibration)
    return begun


def _selection(steps: Steps, calibration: ArtifactRef) -> ArtifactRef:
    run, job = steps.run, steps.job(steps.config.prune)
    seen = {"model": steps.dense, "calibration": calibration}
    scores = score(run, job, {**seen, **steps.general}, "score for selection")
    planned = plan(run, job, {**seen, "scores": scores}, "plan for selection")
    given = {"model": steps.dense, "plan": planned}
    return steps.choose(mask(run, steps.job(Masking()), given, "mask for selection"))


def _trained(steps: Steps, begun: Begun, share: float, number: int) -> Begun:
    """After training up to `share` of all, which round `number` waits for."""
    if begun.selection is None or share <= begun.trained:
        return replace(begun, trained=share)
    label = f"recover round {number - 1}" if number > 1 else "recover dense"
    made = steps.train(begun.model, begun.selection, begun.trained, share, label)
    trainings = (*begun.trainings, made)
    return replace(begun, model=Part(made, "model"), trained=share, trainings=trainings)


def _pruned(steps: Steps, begun: Begun, one: Round, number: int, calibration: ArtifactRef) -> Begun:
    """After a round that masks or shrinks."""
    run, section, label = steps.run, steps.config.prune, f"round {number}"
    dense = shape_in_store(run, steps.dense) if steps.dense.digest else None
    section = section.model_copy(
        update={"target": target_at(section.target, one.done, dense, steps.config.model.dtype)}
    )
    seen: dict[str, Input] = {"model": begun.model, "calibration": calibration}
    scores = score(run, steps.job(section), {**seen, **steps.general}, f"score {label}")
    given = {**seen, **begun.before, "scores": scores}
    planned = plan(run, steps.job(section), given, f"plan {label}")
    if one.regrow:
        growth = score(run, steps.job(section.model_copy(update=GROWTH)), seen, f"score growth {label}")
        regrowth = steps.job(Regrowth(section.units, one.regrow))
        scored = {"plan": planned, "scores": scores, "growth": growth}
        planned = regrow(run, regrowth, scored, f"regrow {label}")
    keep = 0.0 if one.shrink is None else 1 - one.shrink
    masked = mask(run, steps.job(Masking(keep)), {"model": begun.model, "plan": planned}, f"mask {label}")
    gone: dict[str, Input] = {"before": planned} if one.shrink is None else {}
    return replace(begun, model=masked, before=gone)
