"""Commands in processes forked out of one that has imported the libraries and the rooms, which takes seconds.

That a command imports no more than it needs is for those tests that start one as a user does
(tests/flows/cli/test_main.py). Prefect, which reads its settings when it is imported, reads them again where
a command sets them.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from typing import Any

LIBRARIES = (
    "boto3",
    "lm_eval.evaluator",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandas",
    "peft",
    "prefect",
    "resprout.flows.compress",
    "resprout.flows.sweep",
    "resprout.flows.reproduce",
    "sklearn.cluster",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
)
"""None of them but Prefect reads a setting when it is imported that a test changes."""
IMPORTED_WITH: dict[str, str] = {}
"""Prefect's variables when it was imported."""
PYTHON: list[str] = []
"""The python for children, if any."""
LARGEST = 1 << 17
"""Bytes of a command with its environment."""


class Fork:
    """A command that was started, as subprocess.Popen gives it; its output goes to files."""

    def __init__(self, command: list[str], answers: socket.socket, folder: Path) -> None:
        self.args = command
        self.returncode: int | None = None
        self._answers, self._folder = answers, folder
        self._lines = answers.makefile("r")
        self.pid = int(self._lines.readline())

    @property
    def err(self) -> str:
        """What it has written to standard error so far."""
        return (self._folder / "err").read_text(errors="replace")

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait(1)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Exit code, once it has ended; TimeoutExpired leaves it running."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._answers.close()
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end, and return what it has written to standard output and error."""
        self.wait(timeout)
        return (self._folder / "out").read_text(), self.err


class Forks:
    """The process with the libraries, as those see it that have it run commands."""

    def __init__(self, asking: socket.socket, folder: Path) -> None:
        self._asking, self._folder = asking, folder

    def run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        timeout: float,
        script: str = "",
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As subprocess.run of `resprout`, its output captured; TimeoutExpired kills it.

        A `script` is run instead with these arguments, which calls the command line itself.
        """
        fork = self.start(arguments, env, script, cwd)
        try:
            out, err = fork.communicate(timeout)
        except subprocess.TimeoutExpired:
            fork.kill()
            raise
        return subprocess.CompletedProcess(fork.args, fork.wait(0), out, err)

    def start(
        self, arguments: Sequence[str], env: Mapping[str, str], script: str = "", cwd: Path | None = None
    ) -> Fork:
        """As subprocess.Popen of `resprout`, or of a `script`."""
        ours, theirs = socket.socketpair()
        folder = Path(mkdtemp(dir=self._folder))
        code = folder / "script.py"
        code.write_text(script)
        asked = {
            "command": ["resprout", *arguments],
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "script": str(code) if script else "",
        }
        with theirs, (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            files = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._asking, [json.dumps(asked).encode()], files)
        return Fork(asked["command"], ours, folder)


@contextmanager
def forks(env: Mapping[str, str], *given: Path) -> Iterator[Forks]:
    """The process with the libraries, imported in this environment, for as long as the block.

    A python that is `given` runs the commands' children for models (tests/support/warm_python.py).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, TemporaryDirectory(prefix="resprout-forks-") as folder:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, __file__, *map(str, given)], stdin=theirs.fileno(), env=env
            )
        try:
            yield Forks(ours, Path(folder))
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Fork for each command that comes over standard input."""
    PYTHON.extend(sys.argv[1:])
    # Beside this file lie modules whose names are not for a command to find.
    sys.path.pop(0)
    for library in LIBRARIES:
        importlib.import_module(library)
    IMPORTED_WITH.update({name: value for name, value in os.environ.items() if name.startswith("PREFECT_")})
    main_module = importlib.import_module("resprout.flows.cli.main")
    for verb in main_module.VERBS:
        importlib.import_module(f"resprout.flows.cli.{verb}")
    _copy_mlflows_tables()
    # Syntax trees of the code that stages reach, which cache keys hold; each is known by its file's stamp.
    _warm_cache_keys()
    assert threading.active_count() == 1, "a thread would be lost in a fork"
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


def _warm_cache_keys() -> None:
    from resprout.tasks.core.cache_key import PROJECT, code_hash

    for path in (PROJECT / "tasks").rglob("[a-z]*.py"):
        code_hash([".".join(("resprout", *path.relative_to(PROJECT).with_suffix("").parts))])


def _copy_mlflows_tables() -> None:
    """Let commands copy the tables of a new MLflow database, which takes a second to migrate to."""
    from mlflow.store.db import utils
    from sqlalchemy import create_engine

    migrate = utils._initialize_tables
    tables = sqlite3.connect(":memory:", check_same_thread=False)
    with TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/mlflow.db")
        migrate(engine)
        engine.dispose()
        with closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:
            database.backup(tables)

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            migrate(engine)
            return
        with engine.connect() as connection:
            tables.backup(connection.connection.driver_connection)

    utils._initialize_tables = initialize


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
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    random.seed()
    _read_prefects_settings_late()
    if PYTHON:
        _start_children_with(PYTHON[0])
    main = importlib.import_module("resprout.flows.cli.main").main
    if script := str(asked["script"]):
        main = functools.partial(runpy.run_path, script, run_name="__main__")
    os._exit(_code_of(main))


def _start_children_with(python: str) -> None:
    from resprout.tasks.export.formats import hf
    from resprout.tasks.measure import processes

    hf.sys = SimpleNamespace(executable=python)
    processes.COMMAND[0] = python


def _code_of(main: Callable[[], Any]) -> int:
    """Exit code of a command that has run to its end, short of the time that it takes to free its memory."""
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def _read_prefects_settings_late() -> None:
    """As if Prefect were imported after a command has set its variables."""
    from prefect import context
    from prefect.logging import configuration

    from resprout.infra import environment

    def variables() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}

    known, setting, get = [IMPORTED_WITH], environment.set_variables, context.SettingsContext.get

    def set_variables(*given: Any, **named: Any) -> None:
        setting(*given, **named)
        context.SettingsContext.get = late

    def late() -> Any:
        # Asked for the first time since they were set.
        context.SettingsContext.get = get
        before, now = known[-1], variables()
        if before != now:
            known.append(now)
            context.GLOBAL_SETTINGS_CONTEXT = context.root_settings_context()
            if any(
                before.get(name) != now.get(name)
                for name in before.keys() | now.keys()
                if "_LOGGING_" in name
            ):
                configuration.PROCESS_LOGGING_CONFIG.clear()
                configuration.setup_logging()
        return get()

    for module in list(sys.modules.values()):
        if getattr(module, "set_variables", None) is setting:
            module.set_variables = set_variables
    context.SettingsContext.get = late


if __name__ == "__main__":
    main()
