"""A stack on free ports, driven by the command line as a person does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from commands import COMMAND
from resprout.infra.network import get, post
from resprout.infra.prefect.auth import auth_string
from resprout.infra.stack.launch import stack_mark, stack_processes
from servers import free_port


@dataclass
class Machine:
    """A data folder with the ports of its stack."""

    home: Path
    env: dict[str, str] = field(default_factory=dict)
    settings: Path | None = None
    """YAML that `up` is given."""

    def __post_init__(self) -> None:
        self.ports = {"prefect": free_port(), "mlflow": free_port()}

    def __call__(self, *arguments: str | Path, env: dict[str, str] | None = None) -> Any:
        """Run `resprout ...`."""
        if arguments[0] == "up" and self.settings is not None:
            arguments = ("up", self.settings, *arguments[1:])
        quiet = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        settings = {
            **quiet,
            "RESPROUT_HOME": str(self.home),
            **{f"RESPROUT_INFRA__STACK__{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
            "OMP_NUM_THREADS": "1",
            **self.env,
            **(env or {}),
        }
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=settings,
            timeout=240,
            check=False,
        )

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    def parts(self) -> dict[str, dict[str, Any]]:
        """What --status tells of each part."""
        done = self("up", "--status", "--json")
        return {part["name"]: part for part in json.loads(done.stdout)["parts"]}

    def healthy_again(self, part: str, old: int, seconds: float = 60.0) -> dict[str, Any]:
        """The part once it is healthy in another process than `old`."""
        return until(
            lambda: (now := self.parts()[part])["healthy"] and now["pid"] not in (0, old) and now, seconds
        )

    def processes(self) -> list[psutil.Process]:
        """All live processes of the stack, its runs included."""
        return [process for process, _ in stack_processes(stack_mark(self.home))]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Answer of the Prefect server."""
        return post(f"{self.api}/{path}", body, self.auth)

    @property
    def auth(self) -> str:
        """Auth string of its Prefect servers."""
        return auth_string(self.home / "prefect")

    def states(self, run: str) -> list[dict[str, Any]]:
        """States of a flow run, oldest first."""
        states = get(f"{self.api}/flow_run_states/?flow_run_id={run}", self.auth)
        return sorted(states, key=lambda state: state["timestamp"])

    def ends(self, run: str, seconds: float = 150.0) -> list[str]:
        """Names of the states of a run, once it has ended."""

        def ended() -> list[str] | None:
            states = self.states(run)
            over = states[-1]["type"] in ("COMPLETED", "FAILED", "CANCELLED")
            return [state["name"] for state in states] if over else None

        return until(ended, seconds)

    def deploy(self, config: Path, *arguments: str) -> Any:
        """What `resprout deploy` says as JSON."""
        done = self("deploy", config, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def until(look: Callable[[], Any], seconds: float) -> Any:
    """What `look` finds, once it finds something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)
    return found


@contextmanager
def running(machine: Machine) -> Iterator[Machine]:
    """The machine with its stack up; stopped afterwards, whatever is left of it."""
    try:
        done = machine("up")
        assert done.returncode == 0, done.stderr
        yield machine
    finally:
        machine("up", "--down")
        for process in machine.processes():
            process.kill()
