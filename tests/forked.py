"""Commands in processes forked out of one that has imported the large libraries, which takes seconds.

A command itself is imported in its own process, where its settings are. That it imports no more than it needs
is for those tests that start one as a user does (tests/flows/test_cli.py).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

LIBRARIES = (
    "boto3",
    "lm_eval.evaluator",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandas",
    "peft",
    "sklearn.cluster",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
)
"""None of them reads a setting when it is imported that a test changes; Prefect does, and is left out."""
LARGEST = 1 << 17
"""Bytes of a command with its environment."""


class Forks:
    """The process with the libraries, as those see it that have it run commands."""

    def __init__(self, asking: socket.socket) -> None:
        self._asking = asking

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of `resprout`, its output captured; TimeoutExpired kills it."""
        ours, theirs = socket.socketpair()
        command = ["resprout", *arguments]
        asked = json.dumps({"command": command, "env": dict(env), "cwd": str(Path.cwd())}).encode()
        with TemporaryFile() as out, TemporaryFile() as err, ours:
            with theirs:
                socket.send_fds(self._asking, [asked], [theirs.fileno(), out.fileno(), err.fileno()])
            ours.settimeout(timeout)
            with ours.makefile("r") as answers:
                pid = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(command, timeout) from None
            texts = [file.seek(0) or file.read().decode() for file in (out, err)]
        return subprocess.CompletedProcess(command, code, *texts)


@contextmanager
def forks(env: Mapping[str, str]) -> Iterator[Forks]:
    """The process with the libraries, imported in this environment, for as long as the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen([sys.executable, __file__], stdin=theirs.fileno(), env=env)
        try:
            yield Forks(ours)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Fork for each command that comes over standard input."""
    # Beside this file lie modules whose names are not for a command to find.
    sys.path.pop(0)
    for library in LIBRARIES:
        importlib.import_module(library)
    # What is there stays where it is, so that a fork need not copy it when it looks for garbage.
    gc.collect()
    gc.freeze()
    # A process that waited for a command is nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asking = socket.socket(fileno=os.dup(0))
    while True:
        asked, files, _, _ = socket.recv_fds(asking, LARGEST, 3)
        if not asked:
            return
        if not os.fork():
            asking.close()
            break
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        os.write(files[0], b"%d\n" % child)
        os.write(files[0], b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    _become(json.loads(asked), files)


def _become(asked: dict[str, object], files: list[int]) -> None:
    """Run a command, and end as it ends."""
    answers, out, err = files
    os.close(answers)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.argv = asked["command"]
    random.seed()
    importlib.import_module("resprout.flows.cli.main").main()


if __name__ == "__main__":
    main()
