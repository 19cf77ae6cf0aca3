"""The weight of distillation by the selected share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig, RunConfig
from resprout.flows.stages import Steps
from resprout.tasks.core.job import Job, silent
from resprout.tasks.recover.distill_weight import automatic, selected_share
from resprout.tasks.recover.stage import recover
from tiny_run import config as tiny


def selected(folder: Path, **summary: int) -> Path:
    path = folder / "summary.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **summary}))
    return folder


def test_the_weight_falls_with_the_share() -> None:
    """The two ends are the paper's, the line between them ours."""
    assert [automatic(share) for share in (0.0, 0.1, 0.5, 1.0, 1.2)] == [1.0, 0.95, 0.75, 0.5, 0.5]


def test_shares_by_hand(tmp_path: Path) -> None:
    inputs = {"selection": selected(tmp_path, filled_tokens=200, pool_tokens=1000)}
    assert selected_share(inputs) == 0.2
    assert selected_share(inputs, text_tokens=600) == 0.5
    assert selected_share({}) == 1.0


def test_a_selection_without_the_size_of_its_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not say how many tokens its pool has"):
        selected_share({"selection": selected(tmp_path, filled_tokens=200)})


def test_training_by_auto_is_training_by_the_value(
    tmp_path: Path, models_folder: Path, write_selection: Callable[..., Path]
) -> None:
    selection = selected(write_selection(), filled_tokens=400, pool_tokens=1000)
    inputs = {"pruned": models_folder / "pruned", "dense": models_folder / "dense", "selection": selection}
    losses = {}
    for weight in ("auto", 0.8, 0.5):
        workdir = tmp_path / str(weight)
        workdir.mkdir()
        section = RecoverConfig(distill_weight=weight, batch_tokens=600)
        recover.body(Job(section, dtype="float32"), inputs, workdir, silent)
        metrics = json.loads((workdir / "metrics.json").read_text())
        assert metrics["distill_weight"] == (0.8 if weight == "auto" else weight)
        losses[weight] = [json.loads(line)["loss"] for line in (workdir / "history.jsonl").open()]
    assert losses["auto"] == losses[0.8] != losses[0.5]


def test_auto_has_a_teacher() -> None:
    steps = Steps(RunConfig.model_validate(tiny(recover={"distill_weight": "auto"})))
    assert "dense" in next(step for step in steps if step.label == "recover").inputs
    disk = {"distill_weight": "auto", "distill": {"teacher": "disk"}}
    assert "teacher" in [step.label for step in Steps(RunConfig.model_validate(tiny(recover=disk)))]
