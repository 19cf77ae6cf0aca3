"""`resprout run --continue-recovery 2x`: train on from the last weights of a finished recovery."""

from __future__ import annotations

import math
import re

from resprout.configs.errors import BadInput
from resprout.configs.load import Loaded, load

KEY = "recover.continued"
FACTOR = re.compile(r"(\d+(?:\.\d+)?)x")


def override(text: str) -> str:
    """The override that `text` such as 2x stands for.

    Raises:
        BadInput: it is no factor above 1.
    """
    found = FACTOR.fullmatch(text.strip())
    factor = float(found[1]) if found else math.nan
    if not 1 < factor < math.inf:
        raise BadInput(
            f"--continue-recovery is {text}; give how many times the tokens in all, a number above 1 with an "
            "x behind it: 2x trains as many tokens again"
        )
    return f"{KEY}={factor:g}"


def continued(loaded: Loaded, overrides: list[str], text: str) -> tuple[Loaded, list[str]]:
    """The config with the further training, and the overrides that make it.

    Raises:
        BadInput: no factor, or nothing that could be continued.
    """
    more = [*overrides, override(text)]
    if loaded.config.recover is None:
        raise BadInput(f"{loaded.path} has no section recover, so there is no recovery to continue; give one")
    return load(loaded.path, more), more


def require_finished(loaded: Loaded) -> None:
    """BadInput where the recovery that is to be continued is not in the store; loads no weights."""
    from resprout.flows.dry_run import look_up
    from resprout.flows.inputs import Sources
    from resprout.flows.stages import Steps
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.store import ArtifactStore
    from resprout.tasks.core.stage import StepId
    from resprout.tasks.recover.stage import recover

    tracker = Tracker(loaded.config.infra.mlflow, loaded.home)
    store = ArtifactStore.from_config(loaded.config.infra.store, loaded.home, loaded.config.infra.proof)
    sources = Sources(loaded, tracker.uri)
    steps = Steps(loaded.config, sources.sections, sources.credits)
    last = next(step for step in steps if step.id == StepId(recover.name))
    if last.inputs["before"].step not in look_up(steps, store)[0]:
        raise BadInput(
            f"the recovery of {loaded.path} is not in the store, so there is nothing to continue; run it "
            f"without --continue-recovery first, or set {KEY} to train both at once"
        )
