"""A training that was killed goes on from its checkpoint as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_checkpoints import Kept, Killed, killed_at

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import BudgetConfig, RecoverConfig
from resprout.tasks.core.job import Job, Progress, silent
from resprout.tasks.recover import training
from resprout.tasks.recover.checkpoint import seconds_before
from resprout.tasks.recover.ladder import climb, read, rungs
from resprout.tasks.recover.learner import Learner
from resprout.tasks.recover.stage import recover
from seeds import seed_of

Write = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, models_folder: Path, write_selection: Write) -> Callable[..., dict[str, bytes]]:
    selection = write_selection()

    def call(
        kept: Kept | None, progress: Progress = silent, dtype: str = "float32", **changes: Any
    ) -> dict[str, bytes]:
        workdir = Path(tempfile.mkdtemp(dir=tmp_path))
        inputs = {name: models_folder / name for name in ("pruned", "dense")}
        inputs["selection"] = selection
        given = {
            "batch_tokens": 300, "learning_rate": 5e-3, "rank": 4, "dropout": 0.1, "distill_weight": 0.5,
            "checkpoint_minutes": 1e-9, "held_out_ratio": 0.3, **changes,
        }  # fmt: skip
        recover.body(Job(RecoverConfig(**given), dtype=dtype, checkpoints=kept), inputs, workdir, progress)
        files = sorted(path for path in workdir.rglob("*") if path.is_file())
        return {str(path.relative_to(workdir)): path.read_bytes() for path in files}

    return call


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "optimizer", "ranks"),
    [
        ("lora", "adamw", "uniform"), ("full", "adamw", "uniform"), ("perp", "adamw", "uniform"),
        ("lora", "muon", "uniform"), ("full", "muon", "uniform"), ("lora", "adamw", "increlora"),
    ],
)  # fmt: skip
def test_it_goes_on_to_the_same_bytes(
    method: str, optimizer: str, ranks: str, dtype: str,
    train: Callable[..., dict[str, bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Killed behind steps 3 and 7 of ten, with dropout, which draws: all files are the undisturbed ones."""
    given = {"method": method, "optimizer": optimizer, "dtype": dtype, "lora": {"ranks": ranks}}
    whole = train(None, **given)
    kept = Kept(tmp_path / "kept")
    for step in (3, 7):
        with pytest.raises(Killed):
            train(kept, killed_at(step), **given)
    assert kept.steps == [1, 2, 3, 4, 5, 6]
    shown = list[tuple[int, int, str]]()
    assert train(kept, lambda *place: shown.append(place), **given) == whole
    assert shown[0] == (6, 10, "steps")
    assert "recovery goes on from step 6 of 10" in caplog.text
    history = [json.loads(line) for line in whole["history.jsonl"].splitlines()]
    assert [entry["step"] for entry in history] == list(range(1, 11))


@pytest.mark.random
def test_it_goes_on_to_the_same_bytes_from_twenty_random_steps(
    train: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    """A process for each, ended by SIGKILL or SIGTERM; the last one's files are the undisturbed ones."""
    whole, draw = train(None, epochs=3), random.Random(seed_of("steps"))
    steps = len(whole["history.jsonl"].splitlines())
    kept = Kept(tmp_path / "kept")
    for step in sorted(draw.sample(range(1, steps), 20)):
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        pid = os.fork()
        if pid == 0:
            try:
                train(kept, signalled_at(step, number), epochs=3)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -number, (step, number)
        kept.steps = sorted(int(path.name) for path in (tmp_path / "kept").glob("*"))
        # A signal that can be caught lets the step be kept first.
        assert (kept.steps or [0])[-1] == (step if number == signal.SIGTERM else step - 1)
    assert train(kept, epochs=3) == whole


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, also where the caller ignores SIGINT."""
    was = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, was)


@pytest.mark.parametrize("ranks", ["uniform", "increlora"])
def test_a_signal_within_a_step_or_a_look_gives_it_up(
    ranks: str, train: Callable[..., dict[str, bytes]], interrupts: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Interrupted at every seventh forward pass, looks among them: the files are the undisturbed ones."""
    given = {"lora": {"ranks": ranks}, "checkpoint_minutes": 1000}
    whole = train(None, **given)
    forward, calls = Learner.forward, 0

    def counting(learner: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(learner, batch)

    monkeypatch.setattr(Learner, "forward", counting)
    kept, found, interrupted = Kept(tmp_path / "kept"), None, 0
    while found is None:
        try:
            found = train(kept, **given)
        except KeyboardInterrupt:
            interrupted += 1
            assert calls == 7 * interrupted, "nothing is computed behind the signal"
    assert found == whole
    assert interrupted > 3
    assert kept.steps == sorted(set(kept.steps)), "each time it came further"


def test_a_signal_in_the_last_step_loses_nothing(
    train: Callable[..., dict[str, bytes]], interrupts: None, tmp_path: Path
) -> None:
    whole, kept = train(None), Kept(tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        train(kept, signalled_at(10, signal.SIGTERM), checkpoint_minutes=1000)
    assert kept.steps == [10]
    assert train(kept) == whole


def signalled_at(step: int, number: int) -> Progress:
    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return progress


def test_a_checkpoint_is_plain_data(train: Callable[..., dict[str, bytes]], tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    with pytest.raises(Killed):
        train(kept, killed_at(3))
    folder = kept.root / str(kept.steps[-1])
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_rung_that_was_killed_has_taken_what_it_took_before(
    train: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    """So that no rung behind it is given those seconds again."""
    kept = Kept(tmp_path / "kept")
    given = {"method": "distill", "distill_weight": 1.0}
    with pytest.raises(Killed):
        train(kept, killed_at(3), **given)
    assert seconds_before(None) == 0.0
    assert seconds_before(Kept(tmp_path / "none")) == 0.0
    path = kept.root / str(kept.steps[-1]) / "state.json"
    values = json.loads(path.read_text())
    assert seconds_before(kept) == values["seconds"] > 0
    path.write_text(json.dumps({**values, "seconds": 1000.0}))
    rung = rungs(RecoverConfig(ladder=("distill",), budget=BudgetConfig(seconds=5000)), gated=False)[0]
    began: list[Path] = []

    def recovers(job: Any, inputs: Any, workdir: Path, progress: Progress) -> dict[str, float]:
        began.append(workdir)
        return {"recovery_tokens": 7.0}

    climb(Job(rung, dtype="float32", checkpoints=kept), {}, tmp_path, silent, recovers)
    assert began == [tmp_path]
    [climbed] = read(tmp_path)
    assert 1000 <= climbed.seconds < 1060


def test_a_checkpoint_of_another_training_is_refused(
    train: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    kept = Kept(tmp_path / "kept")
    with pytest.raises(Killed):
        train(kept, killed_at(3))
    with pytest.raises(BadInput, match="of a training of 28 tensors in 10 steps, not of one of 28 in 20"):
        train(kept, epochs=2)


def test_patience_stops_and_keeps_the_best_weights(
    train: Callable[..., dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks behind steps 0, 2, 4, 6, 8 of losses 5, 3, 4, 3.5: two without a better one end it at step 6."""
    from safetensors.torch import load

    monkeypatch.setattr(training, "LOOKS", (6, 6))
    losses = iter([5.0, 3.0, 4.0, 3.5])
    monkeypatch.setattr(training.Training, "_held_out", lambda self: next(losses))
    kept = Kept(tmp_path / "kept")
    files = train(kept, method="full", patience=2)
    history = [json.loads(line) for line in files["history.jsonl"].splitlines()]
    looks = {entry["step"]: entry["held_out"] for entry in history if "held_out" in entry}
    assert looks == {2: 3.0, 4: 4.0, 6: 3.5}
    assert len(history) == 6
    state = load((kept.root / "2" / "state.safetensors").read_bytes())
    model = load(files["model/model.safetensors"])
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(model[name], state[f"weight.{name}"])


@pytest.mark.parametrize(
    ("last", "patience", "says"), [(6.0, None, True), (4.0, None, False), (6.0, 9, False)]
)
def test_a_held_out_loss_that_rose_is_said(
    last: float,
    patience: int | None,
    says: bool,
    train: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unless the best weights are kept, which are never worse than those it began with."""
    losses = iter([5.0])
    monkeypatch.setattr(training.Training, "_held_out", lambda self: next(losses, last))
    train(None, method="full", patience=patience)
    said = "rose from 5 to 6 in 10 steps of recovery; lower recover.learning_rate (0.005)"
    assert (said in caplog.text) == says


def exploding_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss of a step be infinite."""
    real = training.Training._differentiate

    def differentiate(self: training.Training, given: training.Step) -> Any:
        summed, targets, places = real(self, given)
        return summed * (torch.inf if self.state.step == step - 1 else 1.0), targets, places

    monkeypatch.setattr(training.Training, "_differentiate", differentiate)


def test_a_loss_that_explodes_ends_training_with_the_last_good_weights(
    train: Callable[..., dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load

    exploding_at(7, monkeypatch)
    kept = Kept(tmp_path / "kept")
    files = train(kept, method="full")
    history = [json.loads(line) for line in files["history.jsonl"].splitlines()]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["exploded_at_step"] == 7
    assert json.loads(files["metrics.json"])["exploded_at_step"] == 7
    state = load((kept.root / "6" / "state.safetensors").read_bytes())
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(load(files["model/model.safetensors"])[name], state[f"weight.{name}"])


def test_without_a_checkpoint_it_fails_and_names_step_and_rows(
    train: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding_at(2, monkeypatch)
    with pytest.raises(
        StageFailed, match=r"not finite at step 2 of recovery \(rows \d+, .*lower recover\.learn"
    ):
        train(None)
