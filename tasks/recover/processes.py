"""Processes that train together, one a device: started for a recovery, listened to, ended with it.

Each is a `resprout.tasks.recover.worker` with a socket to this process as its standard input, over which
lines of JSON go both ways. They meet over a file in a folder of their own, so that no free port is needed,
and talk to each other over the loopback interface (gloo) or between GPUs (NCCL). The first of them asks this
process to keep checkpoints, since none of them knows the store. A process ends when the socket does, so none
outlives this one, however it ends.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import torch

from resprout.configs import errors
from resprout.configs.errors import ResproutError, StageFailed, Transient
from resprout.configs.schema import PartOfRecovery, RecoverConfig, Rung
from resprout.tasks.core.job import Checkpoints, Job, Progress, Watch
from resprout.tasks.core.termination import Termination, deferred_termination
from resprout.tasks.recover import checkpoint

COMMAND = [sys.executable, "-m", "resprout.tasks.recover.worker"]
GRACE_SECONDS = 5.0
"""Where one process fails the others fail behind it: so long is waited for whose fault it was."""
LOOK_SECONDS = 0.2
"""Between two looks at whether this process is to end."""
SECTIONS = {section.__name__: section for section in (RecoverConfig, PartOfRecovery, Rung)}
NOT_SENT = ("config", "share", "checkpoints", "watch")
"""Fields of a job that are sent in another form, or not at all."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
NO_MEMORY = ("out of memory", "can't allocate memory")


@dataclass(frozen=True)
class Request:
    """A recovery as plain data: the job, inputs by role, where the result goes, and what it goes on from."""

    section: str
    config: Mapping[str, Any]
    job: Mapping[str, Any]
    inputs: Mapping[str, str]
    workdir: str
    rendezvous: str
    threads: int
    checkpoint: str | None
    keeps: bool
    """Whether checkpoints are kept."""

    @classmethod
    def of(
        cls,
        job: Job[RecoverConfig],
        inputs: Mapping[str, Path],
        workdir: Path,
        scratch: Path,
        found: Path | None,
    ) -> Request:
        """The request that says what this process was asked for."""
        plain = {one.name: getattr(job, one.name) for one in fields(job) if one.name not in NOT_SENT}
        return cls(
            type(job.config).__name__,
            job.config.model_dump(mode="json"),
            {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()},
            {role: str(inputs[role]) for role in inputs},
            str(workdir),
            str(scratch / "rendezvous"),
            max(1, torch.get_num_threads() // _count(job)),
            None if found is None else str(found),
            job.checkpoints is not None,
        )

    def made(self, checkpoints: Checkpoints | None, watch: Watch) -> Job[RecoverConfig]:
        """The job."""
        section = SECTIONS[self.section].model_validate(self.config)
        return Job(section, **self.job, checkpoints=checkpoints, watch=watch)


@dataclass(eq=False)
class Worker:
    """One of the processes; `fault` is what it said before it failed: the error's class and text."""

    rank: int
    process: subprocess.Popen[bytes]
    channel: socket.socket
    output: IO[bytes]
    fault: tuple[str, str] | None = None
    rest: bytes = field(default=b"", repr=False)

    def lines(self) -> list[dict[str, Any]] | None:
        """The messages that came meanwhile; None where the process has ended."""
        try:
            received = self.channel.recv(2**16)
        except ConnectionError:
            received = b""
        if not received:
            self.process.wait()
            return None
        *whole, self.rest = (self.rest + received).split(b"\n")
        return [json.loads(line) for line in whole]

    def send(self, **message: Any) -> None:
        """Send a message, unless the process has ended."""
        with suppress(ConnectionError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    @property
    def words(self) -> str:
        """The last line that the process printed."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def train_together(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the recovery that the config's processes make together.

    A signal is handed on to them: they keep their state first, as one process does.

    Raises:
        StageFailed: a process failed or was killed; the error of its own class where it is one of ours.
        Transient: a process crashed, for instance because gloo lost a connection; a retry may succeed.
    """
    with (
        TemporaryDirectory(prefix="resprout-processes-") as scratch,
        checkpoint.opened(job.checkpoints) as found,
        deferred_termination() as ending,
        ExitStack() as running,
    ):
        request = Request.of(job, inputs, workdir, Path(scratch), found)
        workers = [_started(rank, job, request, running) for rank in range(_count(job))]
        _listen(workers, job, progress, ending)
    if ending.asked:
        # The signal's own handler let this process go on.
        raise KeyboardInterrupt


def _count(job: Job[RecoverConfig]) -> int:
    return int(job.config.devices.processes)


def _started(rank: int, job: Job[RecoverConfig], request: Request, running: ExitStack) -> Worker:
    ours, theirs = socket.socketpair()
    running.enter_context(ours)
    output = running.enter_context(TemporaryFile())  # noqa: SIM115
    count = _count(job)
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    if interface := LOOPBACK.get(sys.platform):
        environment["GLOO_SOCKET_IFNAME"] = interface
    with theirs:
        # In a group of its own: Ctrl-C in a terminal goes to this process, which hands it on.
        process = subprocess.Popen(
            COMMAND,
            stdin=theirs.fileno(),
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    running.callback(_end, process)
    worker = Worker(rank, process, ours, output)
    worker.send(**asdict(request))
    return worker


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _listen(workers: list[Worker], job: Job[RecoverConfig], progress: Progress, ending: Termination) -> None:
    """Do what the processes ask for until all have ended."""
    asked, until, failed = False, float("inf"), list[Worker]()

    def look() -> None:
        failed.extend(one for one in workers if one not in failed and _failed(one, asked))

    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.channel, selectors.EVENT_READ, worker)
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(LOOK_SECONDS):
                messages = key.data.lines()
                if messages is None:
                    selector.unregister(key.fileobj)
                for message in messages or ():
                    _answer(key.data, message, job, progress)
            if ending.asked and not asked:
                asked = True
                for worker in workers:
                    worker.send(end=True)
            look()
            if failed and until == float("inf"):
                until = time.monotonic() + GRACE_SECONDS
    look()
    if failed:
        raise _error(failed, len(workers))


def _answer(worker: Worker, message: Mapping[str, Any], job: Job[RecoverConfig], progress: Progress) -> None:
    match message:
        case {"progress": [done, total, what]}:
            progress(done, total, what)
        case {"watch": values, "step": step}:
            job.watch(step, values)
        case {"save": folder, "step": step} if job.checkpoints is not None:
            job.checkpoints.save(Path(folder), step)
            worker.send(saved=step)
        case {"fault": [kind, text]}:
            worker.fault = kind, text


def _failed(worker: Worker, asked: bool) -> bool:
    code = worker.process.poll()
    ended_as_asked = asked and code == -signal.SIGTERM
    return worker.fault is not None or (code not in (None, 0) and not ended_as_asked)


def _blame(worker: Worker) -> int:
    """Least for the process whose fault the others' are: one that was killed, then one that says why."""
    if worker.process.poll() == -signal.SIGKILL:
        return 0
    said = worker.fault is not None and (_own(worker.fault[0]) or _no_memory(*worker.fault))
    return 1 if said else 2


def _own(kind: str) -> type[ResproutError] | None:
    found = getattr(errors, kind, None)
    return found if isinstance(found, type) and issubclass(found, ResproutError) else None


def _no_memory(kind: str, text: str) -> bool:
    return kind == "MemoryError" or any(words in text.lower() for words in NO_MEMORY)


def _error(failed: list[Worker], count: int) -> ResproutError:
    """The error of a training whose processes failed; the first to fail comes first."""
    worker = min(failed, key=_blame)
    smaller = (
        "lower recover.micro_batch_tokens, or give recover.devices fewer processes or sharding: fsdp; a run "
        "of the same config goes on from the last checkpoint"
    )
    if worker.process.poll() == -signal.SIGKILL:
        return StageFailed(
            f"{_name(worker, count)} was ended by SIGKILL, which is how a system without memory ends "
            f"processes; if that was it, {smaller}"
        )
    if worker.fault is not None:
        kind, text = worker.fault
        if (own := _own(kind)) is not None:
            return own(text)
        if _no_memory(kind, text):
            return StageFailed(f"{_name(worker, count)} ran out of memory; {smaller}")
    # A process that ends takes the connections of the others with it, so the root cause may be any of them.
    each = "; ".join(f"{_name(one, count)} {_how(one)}" for one in failed)
    crashed = any((one.process.poll() or 0) < 0 for one in failed)
    return (Transient if crashed else StageFailed)(
        f"{each}; a run of the same config goes on from the last checkpoint"
    )


def _name(worker: Worker, count: int) -> str:
    return f"training process {worker.rank} (of 0 to {count - 1})"


def _how(worker: Worker) -> str:
    if worker.fault is not None:
        return "failed with {}: {}".format(*worker.fault)
    code = worker.process.poll() or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how} ({worker.words})" if worker.words else how
