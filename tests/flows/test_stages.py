"""The steps of a run out of the declarations of stages and inputs, and what a wrong declaration is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import ModelConfig, RunConfig
from resprout.flows import inputs
from resprout.flows.inputs import ModelInput, acquisitions, named_sources
from resprout.flows.stages import STAGES, Steps
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Model, Reads, stage
from tiny_run import config

RUN = RunConfig.model_validate(config())


def nothing(job: Job[Any], given: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """The body of a stage that is never run."""


def test_every_section_of_a_run_config_belongs_to_a_stage() -> None:
    sections = {one.section for one in STAGES}
    others = {"name", "seed", "model", "compare", "registration", "push", "infra"}
    assert set(RunConfig.model_fields) == sections | others


def test_another_model_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModelInput(
        "checkpoint", "checkpoint", "merge.source", "checkpoint", lambda config: ModelConfig(source="other")
    )
    monkeypatch.setattr(inputs, "MODELS", (*inputs.MODELS, other))
    assert "checkpoint" in [one.name for one in acquisitions(RUN)]
    assert ("merge.source", "other") in [(key, address) for key, address, _ in named_sources(RUN)]
    merge = stage("merge", kind="model", reads={"checkpoint": Reads("model")})(nothing)
    steps = Steps(RUN)
    steps.add(merge, section=RUN.model)
    (slot,) = steps[-1].inputs.values()
    assert slot.step == ("acquire_model", "checkpoint")


def test_a_stage_that_reads_what_nothing_gives_is_named() -> None:
    merge = stage("merge", kind="model", reads={"checkpoint": Reads("model")})(nothing)
    with pytest.raises(ValueError, match="stage merge reads 'checkpoint', which no stage before it"):
        Steps(RUN).add(merge, section=RUN.model)


def test_own_metrics_of_a_model_need_a_stage_that_the_report_reads() -> None:
    with pytest.raises(ValueError, match="set reported=True"):
        stage("merge", kind="model", leaves=Model("merged", metrics=True))(nothing)


def test_rows_like_what_the_model_is_for_are_never_trained_on() -> None:
    """Whatever method chooses, `filter` leaves them out of the pool."""
    select = {
        **config()["select"],
        "method": "random",
        "capabilities": {"rows": [{"source": "wanted.jsonl"}]},
    }
    steps = {step.stage.name: step for step in Steps(RunConfig.model_validate(config(select=select)))}
    assert steps["filter"].inputs["targets"].step == ("acquire_rows", "capabilities")
    assert "targets" not in steps["select"].inputs


def test_selections_find_what_they_read_wherever_they_stand() -> None:
    """Kept words before the rounds of a schedule; a pilot that only a rival asks for."""
    select = config()["select"]
    rounds = {"schedule": "prune_and_regrow", "criterion": "magnitude", "repair": "none", "layout": "uniform"}
    kept = {**select, "paser": {**select["paser"], "dense": "kept"}}
    changes = {"select": kept, "prune": {**rounds, "target": {"params_ratio": 0.9}}}
    made = [step.stage.name for step in Steps(RunConfig.model_validate(config(**changes)))]
    assert made.count("dense_words") == made.count("select") == 1
    assert made.index("dense_words") < made.index("select")

    rival = {**select, "method": "random", "compare": ["auto"]}
    rival["paser"] = {**select["paser"], "pilot_tokens": 128}
    steps = {step.id: step for step in Steps(RunConfig.model_validate(config(select=rival)))}
    pilot = steps["select", "auto:17"].inputs["pilot"]
    assert pilot.step == ("recover", "pilot")
    assert "pilot" not in steps["select", ""].inputs
