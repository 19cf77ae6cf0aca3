"""Going on from a finished recovery: as many tokens again, or twice as many, by a schedule of their own."""

from __future__ import annotations

import json
from pathlib import Path

from resprout.configs.errors import StageFailed
from resprout.configs.schema import Continuation, RecoverConfig
from resprout.tasks.recover import ladder


def continuation(config: RecoverConfig) -> Continuation:
    """The section of the training that goes on where the section's own recovery ends."""
    given = config.model_fields_set & RecoverConfig.model_fields.keys() - {"ladder"}
    return Continuation(**{**{name: getattr(config, name) for name in given}, "method": config.methods[-1]})


def behind(config: Continuation, before: Path) -> Continuation:
    """The section with the tokens that are still to train, behind those of the recovery in `before`.

    They are `continued` times those that were trained, less these: a budget says what the recovery
    before might take, and no more than that.

    Raises:
        StageFailed: nothing was trained.
    """
    trained = trained_tokens(before, config.batch_tokens)
    if not trained:
        raise StageFailed(
            "recover.continued multiplies the tokens of the recovery before, which trained on none (no rung "
            "of its ladder was climbed); leave continued out"
        )
    assert config.continued is not None
    more = max(1, round((config.continued - 1) * trained))
    return config.model_copy(update={"budget": None, "tokens": more, "trained_tokens": trained})


def trained_tokens(folder: Path, batch_tokens: int) -> int:
    """Tokens that a recovery trained on, with the rungs or the rounds before it."""
    if (folder / ladder.FILE).is_file():
        return round(sum(one.tokens for one in ladder.read(folder)))
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    # Parts of one schedule count their steps on.
    return int(json.loads(lines[-1])["step"]) * batch_tokens if lines else 0
