"""One of the processes that train together: `python -m resprout.tasks.recover.worker`.

Its standard input is a socket to the process that started it (tasks/recover/processes.py): the first line is
the request; later ones say that a checkpoint is kept, or that a signal came. It ends when the socket does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs import errors
from resprout.tasks.core.job import silent, unwatched
from resprout.tasks.recover.processes import Request


@dataclass
class Parent:
    """The process that started this one; it keeps checkpoints, and shows progress and numbers."""

    channel: socket.socket
    found: Path | None = None
    """The checkpoint that training goes on from."""
    kept: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The checkpoint that was there when training began."""
        yield self.found

    def save(self, folder: Path, step: int) -> None:
        """Have the files of `folder` kept, and wait until they are."""
        self.send(save=str(folder), step=step)
        self.kept.get()

    def progress(self, done: int, total: int, what: str) -> None:
        """Show how far training is."""
        self.send(progress=[done, total, what])

    def watch(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers."""
        self.send(watch=dict(values), step=step)

    def listen(self, lines: Iterator[bytes]) -> None:
        """Take what comes; end this process where nothing can come any more."""
        for line in lines:
            message = json.loads(line)
            if "saved" in message:
                self.kept.put(message["saved"])
            if "end" in message:
                # As if the system had sent it: training keeps its state, and then the signal ends it.
                os.kill(os.getpid(), signal.SIGTERM)
        os._exit(1)


def recover_part(request: Request, parent: Parent) -> None:
    """Train this process's part; the first process writes the result."""
    import torch

    from resprout.tasks.recover.stage import write
    from resprout.tasks.recover.training import PartDone

    torch.set_num_threads(request.threads)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parent.found = None if request.checkpoint is None else Path(request.checkpoint)
    job = request.made(parent if request.keeps else None, unwatched if rank else parent.watch)
    backend = "gloo"
    if job.device != "cpu":
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    meeting = f"file://{request.rendezvous}"
    torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
    inputs = {role: Path(folder) for role, folder in request.inputs.items()}
    with suppress(PartDone):
        write(job, inputs, Path(request.workdir), silent if rank else parent.progress)
    torch.distributed.destroy_process_group()


def main() -> None:
    """Do what the request asks for; say what goes wrong."""
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as channel:
        lines = iter(channel.makefile("rb"))
        parent = Parent(channel)
        request = Request(**json.loads(next(lines)))
        threading.Thread(target=parent.listen, args=(lines,), daemon=True).start()
        try:
            recover_part(request, parent)
        except Exception as error:
            traceback.print_exc()
            known = (one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)
            parent.send(fault=[next(known, type(error).__name__), str(error)])
            sys.stderr.flush()
            # Others may wait for this one: nothing here waits for them.
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    main()
