"""Several processes train what one trains, and none of them is left behind."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from kept_checkpoints import Kept, Killed, killed_at
from safetensors.torch import load_file

from resprout.configs.errors import BadInput, StageFailed, Transient
from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Checkpoints, Job, Progress, silent
from resprout.tasks.recover import processes
from resprout.tasks.recover.stage import recover, teacher
from warm_python import warm_python

Write = Callable[..., Path]
LOSSES = ("loss", "cross_entropy", "distillation", "held_out", "held_out_before", "grad_norm")


class Result:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        self.weights = load_file(folder / "model" / "model.safetensors")

    def bytes(self) -> dict[str, bytes]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def require_close(self, other: Result, loss: float, weight: float) -> None:
        assert len(self.history) == len(other.history) > 3
        for mine, theirs in zip(self.history, other.history, strict=True):
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                bound = loss * max(1.0, abs(value)) if name in LOSSES else 0.0
                assert abs(value - theirs[name]) <= bound or name == "places", (name, mine, theirs)
        assert self.weights.keys() == other.weights.keys()
        for name, one in self.weights.items():
            assert one.dtype == other.weights[name].dtype
            torch.testing.assert_close(one.float(), other.weights[name].float(), atol=weight, rtol=weight)


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """Processes that have imported what they need."""
    with warm_python({**os.environ}, "accelerate", "peft", "torch.distributed.fsdp") as python:
        usual = processes.COMMAND
        processes.COMMAND = [str(python), *usual[1:]]
        yield
        processes.COMMAND = usual


@pytest.fixture
def train(tmp_path: Path, models_folder: Path, write_selection: Write) -> Callable[..., Result]:
    number = iter(range(99))

    def call(
        processes: int,
        sharding: str = "ddp",
        dtype: str = "float32",
        kept: Checkpoints | None = None,
        progress: Progress = silent,
        watch: Any = None,
        **changes: Any,
    ) -> Result:
        workdir = tmp_path / f"out{next(number)}"
        workdir.mkdir()
        inputs = {name: models_folder / name for name in ("pruned", "dense")}
        inputs["selection"] = write_selection()
        given = {
            "batch_tokens": 600, "learning_rate": 5e-3, "rank": 4, "dropout": 0.0, "held_out_ratio": 0.3,
            "devices": {"processes": processes, "sharding": sharding}, **changes,
        }  # fmt: skip
        config = RecoverConfig(**given)
        job = Job(config, dtype=dtype, checkpoints=kept, **({} if watch is None else {"watch": watch}))
        if config.taught_from_disk:
            inputs["teacher"] = tmp_path / "teacher"
            if not inputs["teacher"].exists():
                inputs["teacher"].mkdir()
                teacher.body(Job(config, dtype=dtype), inputs, inputs["teacher"], silent)
        recover.body(job, inputs, workdir, progress)
        return Result(workdir)

    return call


CASES: dict[str, dict[str, Any]] = {
    "lora": {"pack": True},
    "full": {"method": "full", "learning_rate": 1e-3},
    "perp": {"method": "perp"},
    "padded": {"pack": False, "micro_batch_tokens": 128},
    "online": {"distill_weight": 0.7, "pack": True},
    "disk": {"distill_weight": 0.7, "distill": {"teacher": "disk"}},
    "checkpointing": {"gradient_checkpointing": True, "method": "full", "learning_rate": 1e-3},
}


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(case: str, sharding: str, train: Callable[..., Result]) -> None:
    """The curves and the weights of one process on the whole batch, up to the order of its sums."""
    train(2, sharding, **CASES[case]).require_close(train(1, **CASES[case]), 1e-5, 1e-5)


def test_ranks_grow_in_two_processes_as_in_one(train: Callable[..., Result]) -> None:
    given: dict[str, Any] = {"lora": {"ranks": "increlora"}, "pack": True}
    train(2, **given).require_close(train(1, **given), 1e-5, 1e-5)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_in_bfloat16(sharding: str, train: Callable[..., Result]) -> None:
    """Equal within the rounding of bfloat16, whose steps are 2^-8."""
    train(2, sharding, dtype="bfloat16").require_close(train(1, dtype="bfloat16"), 2**-6, 2**-6)


def left() -> list[psutil.Process]:
    """Training processes that are there."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [one] if processes.COMMAND[-1] in one.cmdline() else []
    return found


@pytest.mark.parametrize(("method", "sharding"), [("lora", "ddp"), ("full", "fsdp"), ("lora", "fsdp")])
def test_they_go_on_to_the_same_bytes(
    method: str, sharding: str, train: Callable[..., Result], tmp_path: Path
) -> None:
    """Killed behind step 3 of five, with dropout, which draws, and the best weights kept."""
    given: dict[str, Any] = {"method": method, "dropout": 0.1, "patience": 9, "checkpoint_minutes": 1e-9}
    whole, kept = train(2, sharding, **given), Kept(tmp_path / "kept")
    with pytest.raises(Killed):
        train(2, sharding, kept=kept, progress=killed_at(3), **given)
    assert kept.steps == [1, 2]
    assert not left()
    assert train(2, sharding, kept=kept, **given).bytes() == whole.bytes()
    assert kept.steps == [1, 2, 3, 4]
    with pytest.raises(BadInput, match="is of a training in 2 processes, not in 1, which draws other"):
        train(1, kept=kept, **given)


class Ended(Exception):
    """What a signal's handler raises."""


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_signal_is_handed_on_and_costs_no_step(
    sharding: str, train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes keep their state first, and then this one is ended as the signal ends it."""

    def end(number: int, frame: object) -> None:
        raise Ended

    def progress(done: int, total: int, what: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    kept, given = Kept(tmp_path / "kept"), {"dropout": 0.1, "batch_tokens": 64}
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Ended):
            train(2, sharding, kept=kept, progress=progress, **given)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(kept.steps) == 1
    assert kept.steps[0] >= 2
    assert not left()
    assert train(2, sharding, kept=kept, **given).bytes() == train(2, sharding, **given).bytes()


def ended_by(number: signal.Signals) -> Progress:
    """Send the second process a signal behind the second step."""

    def progress(done: int, total: int, what: str) -> None:
        if done == 2:
            [second] = [one for one in left() if one.environ()["RANK"] == "1"]
            second.send_signal(number)

    return progress


def test_one_that_is_killed_ends_all(train: Callable[..., Result]) -> None:
    words = r"training process 1 \(of 0 to 1\) was ended by SIGKILL, which is how a system without memory"
    with pytest.raises(StageFailed, match=words):
        train(2, progress=ended_by(signal.SIGKILL), batch_tokens=64)
    assert not left()


def test_one_that_crashes_ends_all_and_another_try_goes_on(
    train: Callable[..., Result], tmp_path: Path
) -> None:
    """A process that aborts, as gloo does in a lost connection, fails the other; training resumes."""
    kept, given = Kept(tmp_path / "kept"), {"batch_tokens": 64, "checkpoint_minutes": 1e-9}
    with pytest.raises(Transient, match=r"process 1 \(of 0 to 1\) was ended by SIGABRT.* last checkpoint"):
        train(2, kept=kept, progress=ended_by(signal.SIGABRT), **given)
    assert not left()
    assert train(2, kept=kept, **given).bytes() == train(2, **given).bytes()


def failed(rank: int, code: int, words: str = "", fault: tuple[str, str] | None = None) -> processes.Worker:
    process: Any = SimpleNamespace(poll=lambda: code)
    nothing: Any = None
    return processes.Worker(rank, process, nothing, io.BytesIO(words.encode()), fault)


ABORTED = failed(0, -signal.SIGABRT, "terminate called\n  what():  lost\n")
LOST = failed(1, 1, "Traceback", ("RuntimeError", "Connection closed by peer"))
KILLED = failed(2, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("those", "error", "words"),
    [
        ([ABORTED, LOST, KILLED], StageFailed, "^training process 2 .* was ended by SIGKILL, which"),
        ([LOST, failed(3, 1, "", ("MemoryError", ""))], StageFailed, "^training process 3 .* out of memory"),
        ([ABORTED, failed(3, 1, "", ("BadInput", "no rows"))], BadInput, "^no rows$"),
        (
            [LOST, ABORTED],
            Transient,
            r"^training process 1 \(of 0 to 3\) failed with RuntimeError: Connection closed by peer; "
            r"training process 0 \(of 0 to 3\) was ended by SIGABRT \(what\(\):  lost\); a run of the same",
        ),
        ([LOST, failed(3, 1)], StageFailed, r"by peer; training process 3 .* ended with exit code 1; a run"),
    ],
)  # fmt: skip
def test_whose_fault_it_is(those: list[processes.Worker], error: type[Exception], words: str) -> None:
    """One that was killed, then one that says why, and all that is known where there is neither."""
    with pytest.raises(error, match=words):
        raise processes._error(those, 4)


def test_their_errors_and_numbers_are_those_of_one(train: Callable[..., Result]) -> None:
    seen = list[int]()
    with pytest.raises(StageFailed, match=r"the loss grew from .* at step \d+ of recovery \(rows"):
        train(
            2,
            method="full",
            learning_rate=1.0,
            warmup_ratio=0.0,
            watch=lambda step, values: seen.append(step),
        )
    assert seen == list(range(1, len(seen) + 1)) != []
    assert not left()


def test_one_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """It waits for a second one, which never comes, until the socket closes."""
    ours, theirs = socket.socketpair()
    job = Job(RecoverConfig(devices={"processes": 2}))
    request = processes.Request.of(job, {}, tmp_path, tmp_path, None)
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    with theirs:
        process = subprocess.Popen(processes.COMMAND, stdin=theirs.fileno(), env=env)
    with ours:
        ours.sendall(json.dumps(asdict(request)).encode() + b"\n")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
    assert process.wait(30) == 1


def test_what_cannot_be_shared_out_is_done_alone(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "COMMAND", ["false"])
    assert train(2, method="reconstruct").history
    with pytest.raises(StageFailed, match=r"training process [01] \(of 0 to 1\) ended with exit code 1"):
        train(2)
