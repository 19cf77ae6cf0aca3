"""A `python` whose processes are forked out of an isolated one that has imported transformers.

It stands in for sys.executable where a command starts a child for a model, which spends seconds on imports.
That such a child is a process started anew is for tests/export and tests/measure, and for the run that the
tests of flows share.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

LIBRARIES = (
    "psutil",
    "safetensors.torch",
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
LARGEST = 1 << 17
"""Bytes of a command with its environment."""
CLIENT = """#!{python} -ISE
import array, json, os, signal, socket, sys
asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
asking.connect({address!r})
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
asking.sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
pid = int(asking.recv(100))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(asking.recv(100))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
"""What is started: it hands its arguments, environment and files over, and ends as the fork ends."""


@contextmanager
def warm_python(env: Mapping[str, str], *more: str) -> Iterator[Path]:
    """Path of the program, for as long as the block; `more` libraries are imported too."""
    with TemporaryDirectory(prefix="resprout-python-") as folder:
        address, program = Path(folder) / "socket", Path(folder) / "python"
        program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        program.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(address))
            listening.listen(64)
            process = subprocess.Popen(
                [sys.executable, "-I", __file__, *more], stdin=listening.fileno(), env={**env, **OFFLINE}
            )
        try:
            yield program
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Fork for each client that connects to the socket that is standard input."""
    listening = socket.socket(fileno=os.dup(0))
    for library in (*LIBRARIES, *sys.argv[1:]):
        importlib.import_module(library)
    assert not any(name.partition(".")[0] == "resprout" for name in sys.modules)
    gc.collect()
    gc.freeze()
    # A process that waited for a child is nobody's to wait for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        client, _ = listening.accept()
        if not os.fork():
            listening.close()
            break
        client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, files, _, _ = socket.recv_fds(client, LARGEST, 3)
    child = os.fork()
    if not child:
        client.close()
        _become(*json.loads(asked), files)
    client.send(b"%d" % child)
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, client], [], [])[0]:
        # The client was killed.
        os.kill(child, signal.SIGKILL)
    client.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _become(arguments: list[str], env: dict[str, str], cwd: str, files: list[int]) -> None:
    """Run a module or a script as `python` does, and end."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if arguments[0] == "-I":
        arguments = arguments[1:]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main()
