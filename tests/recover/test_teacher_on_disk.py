from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_checkpoints import Kept, Killed

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.load import load_model
from resprout.tasks.recover import teacher_on_disk as module
from resprout.tasks.recover.batches import collate
from resprout.tasks.recover.learner import Learner
from resprout.tasks.recover.stage import recover, teacher
from resprout.tasks.recover.teachers import Online
from resprout.tasks.recover.training_data import prepare

Write = Callable[..., Path]


@pytest.fixture
def inputs(models_folder: Path, write_selection: Write) -> dict[str, Path]:
    named = {name: models_folder / name for name in ("pruned", "dense")}
    return {**named, "selection": write_selection(count=30, requested=1500)}


def config(**changes: Any) -> RecoverConfig:
    top_k = changes.pop("top_k", 64)
    given = {
        "batch_tokens": 400,
        "distill_weight": 1.0,
        "held_out_ratio": 0.2,
        "learning_rate": 5e-3,
        **changes,
    }
    return RecoverConfig(**given, distill={"teacher": "disk", "top_k": top_k})


def made(inputs: dict[str, Path], folder: Path, section: RecoverConfig) -> dict[str, Any]:
    folder.mkdir()
    teacher.body(Job(section, dtype="float32"), inputs, folder, silent)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def distilled(inputs: dict[str, Path], section: RecoverConfig, folder: Path | None) -> list[float]:
    """The loss of each micro-batch of a step, by the teacher in the folder or the dense model itself."""
    data = prepare(section, inputs, 17)
    student, dense = (load_model(inputs[name], "float32", "cpu") for name in ("pruned", "dense"))
    taught = module.Disk(folder, data.rows) if folder else Online(dense)
    learner = Learner(student, taught, section, torch.float32)
    found = []
    for one in data.steps[0]:
        batch = collate(data.rows, [[one]], data.everything, pack=False)
        found.append(learner.loss(learner(batch), len(batch.targets)).distillation.item())
    return found


@pytest.mark.parametrize(("temperature", "loss_on"), [(1.0, "responses"), (2.0, "all")])
def test_what_is_lost_falls_with_k(
    temperature: float, loss_on: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """With all of the vocabulary it is the loss of the model itself, up to 16 bits; with less never more."""
    online = distilled(inputs, config(distill_temperature=temperature, loss_on=loss_on), None)
    sums, rest = [], []
    for k in (4, 64, 257):
        section = config(distill_temperature=temperature, loss_on=loss_on, top_k=k)
        metrics = made(inputs, tmp_path / f"{k}", section)
        sums.append(sum(distilled(inputs, section, tmp_path / f"{k}")))
        rest.append(metrics["teacher_rest_mass"])
        assert metrics["teacher_top_k"] == k
    assert sums == sorted(sums)
    assert rest == sorted(rest, reverse=True)
    assert sums[-1] == pytest.approx(sum(online), rel=2e-3)
    assert sums[0] < 0.9 * sum(online)
    assert metrics["teacher_entropy_lost_nats"] == pytest.approx(0, abs=1e-6)


def test_shards_are_one_file(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(inputs, tmp_path / "one", config())
    monkeypatch.setattr(module, "SHARD_TARGETS", 100)
    made(inputs, tmp_path / "many", config())
    assert len(list((tmp_path / "one").glob("top-*"))) == 1
    assert len(list((tmp_path / "many").glob("top-*"))) > 3
    assert distilled(inputs, config(), tmp_path / "many") == pytest.approx(
        distilled(inputs, config(), tmp_path / "one"), rel=1e-3
    )


def test_a_killed_teacher_goes_on_from_its_last_file(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TARGETS", 100)
    section, kept = config().model_copy(update={"checkpoint_minutes": 1e-9}), Kept(tmp_path / "kept")
    made(inputs, tmp_path / "whole", section)
    seen: list[int] = []

    def killed(done: int, total: int, what: str) -> None:
        seen.append(done)
        if done > total // 2:
            raise Killed

    (tmp_path / "half").mkdir()
    with pytest.raises(Killed):
        teacher.body(Job(section, dtype="float32", checkpoints=kept), inputs, tmp_path / "half", killed)
    assert kept.steps
    half, seen = seen, []
    (tmp_path / "again").mkdir()
    job = Job(section, dtype="float32", checkpoints=kept)
    teacher.body(job, inputs, tmp_path / "again", lambda done, total, what: seen.append(done))
    assert seen[0] > half[0], "what was done is not done again"
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "again")
    )
    assert first == second


def test_recovery_without_the_dense_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Its losses are those of the dense model beside the student, and that model is not opened."""
    section = config(top_k=257, dropout=0.0)
    made(inputs, tmp_path / "teacher", section)
    losses = {}
    for name in ("disk", "online"):
        given = {"disk": {"teacher": tmp_path / "teacher"}, "online": {"dense": inputs["dense"]}}[name]
        changed = section.model_copy(update={"distill": section.distill.model_copy(update={"teacher": name})})
        (tmp_path / name).mkdir()
        kept = {role: inputs[role] for role in ("pruned", "selection")}
        recover.body(Job(changed, dtype="float32"), {**kept, **given}, tmp_path / name, silent)
        history = [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        losses[name] = [entry["loss"] for entry in history]
    assert losses["disk"] == pytest.approx(losses["online"], rel=5e-3)
    assert losses["disk"][-1] < losses["disk"][0]


def test_a_file_about_other_tokens_is_refused(
    inputs: dict[str, Path], write_selection: Write, tmp_path: Path
) -> None:
    made(inputs, tmp_path / "teacher", config())
    other = {**inputs, "selection": write_selection(count=30, requested=1500, seed=5, name="other")}
    with pytest.raises(BadInput, match="about other tokens"):
        distilled(other, config(), tmp_path / "teacher")
