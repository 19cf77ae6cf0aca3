"""The door for learned masks: a method that declares it hands back another plan, which later stages read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import RecoverConfig, RunConfig
from resprout.flows.stages import Steps
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.load import load_model
from resprout.tasks.prune.plan import Plan, read_plan
from resprout.tasks.recover.stage import METHODS, recover
from resprout.tasks.recover.training_data import Recovered
from tiny_export import write_plan as write_tiny_plan


def train(job: Any, inputs: Mapping[str, Path], data: Any, progress: Any) -> Recovered:
    """A toy: the model as it is, and a plan that says so."""
    found = read_plan(inputs["plan"])
    model = load_model(inputs["pruned"], job.dtype, job.device)
    plan = found.model_copy(update={"criterion": "learned"}) if job.seed else None
    return Recovered(model, [{"step": 1}], {}, plan=plan)


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    METHODS.add("toy", f"{__name__}:train", "a toy", declared={"changes_plan": True})
    yield
    METHODS._entries.pop("toy")


@pytest.mark.parametrize(("seed", "criterion"), [(1, "learned"), (0, None)])
def test_the_stage_writes_the_plan_that_the_method_hands_back(
    seed: int,
    criterion: str | None,
    models_folder: Path,
    write_selection: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """And the one that it was given where it hands back none."""
    given = write_tiny_plan(tmp_path / "plan")
    before: Plan = read_plan(given)
    inputs = {"pruned": models_folder / "pruned", "selection": write_selection(), "plan": given}
    (tmp_path / "out").mkdir()
    job = Job(RecoverConfig(method="toy"), seed=seed, dtype="float32")
    recover.body(job, inputs, tmp_path / "out", silent)
    after = read_plan(tmp_path / "out")
    assert after.criterion == (criterion or before.criterion)
    assert after.layers == before.layers


@pytest.mark.parametrize(("method", "origin"), [("toy", "recover"), ("lora", "plan")])
def test_later_stages_read_it(method: str, origin: str, tmp_path: Path) -> None:
    config = RunConfig.model_validate({
        "name": "x", "model": {"source": "/m"},
        "calibrate": {"method": "random", "text": ({"source": "/t"},)},
        "prune": {"method": "flap", "target": {"params_ratio": 0.9}},
        "select": {"method": "random", "pool": ({"source": "/p"},), "budget_ratio": 0.5},
        "recover": {"method": method},
        "evaluate": {"perplexity": {"text": ({"source": "/t"},)}},
        "quantize": {"formats": ["gguf:Q8_0"]},
        "export": {"formats": ["hf"]},
    })  # fmt: skip
    steps = Steps(config)
    readers = {step.stage.name: step.inputs["plan"].step.stage for step in steps if "plan" in step.inputs}
    assert readers["export"] == readers["quantize"] == origin
    assert readers["prune"] == readers["recover"] == "plan"
