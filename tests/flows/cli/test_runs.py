"""`deploy --run --wait`, `runs`, `logs`, `cancel`, `retry` with a stack, and with a home's own server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from commands import COMMAND
from one_machine import Machine, running, until
from tiny_run import write_run

pytestmark = pytest.mark.timeout(400)
NAME = r"tiny \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
LONG = ("recover.epochs=100000", "recover.batch_tokens=64")
"""More training than a test waits for."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with running(Machine(tmp_path_factory.mktemp("stack"))) as machine:
        yield machine


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The gate alone is asked; the rest would take the time of the test.
    without = dict.fromkeys(("measure", "register"))
    return write_run(tmp_path_factory.mktemp("run"), **without)


def listed(machine: Machine, *options: str) -> list[dict[str, Any]]:
    done = machine("runs", "--json", *options)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_a_run_is_waited_for_and_ends_with_its_exit_code(stack: Machine, config: Path) -> None:
    done = stack("deploy", config, "--run", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[0])
    assert re.fullmatch(NAME, made["name"])
    assert made["page"] == f"http://127.0.0.1:{stack.ports['prefect']}/runs/flow-run/{made['flow_run']}"
    lines = [line[9:] for line in done.stdout.splitlines()[1:]]
    assert lines[0] == "state Scheduled"
    assert "recover: started" in lines
    assert lines.count("state Completed") == 1
    found = {one["id"]: one for one in listed(stack)}[made["flow_run"]]
    assert (found["name"], found["state"], found["config"]) == (made["name"], "Completed", "tiny")
    done = stack(
        "deploy", config, "--run", "--wait", "--set", "gate.max_params_ratio=0.5", "--set", "name=Big"
    )
    assert done.returncode == 3, done.stderr
    assert "state GateNotPassed: the gate is not passed: max_params_ratio" in done.stdout
    (failed,) = listed(stack, "--failed")
    assert failed["name"].startswith("Big ")
    shown = stack("runs").stdout.splitlines()
    assert shown[0].split() == ["name", "state", "started", "took", "config", "id"]
    assert shown[1].startswith(failed["name"])
    assert max(map(len, shown)) <= 100


def test_a_run_that_a_schedule_or_the_page_made_is_named_when_it_begins(stack: Machine, config: Path) -> None:
    made = stack.deploy(config)
    run = stack.post(f"deployments/{made['id']}/create_flow_run", {"parameters": {"overrides": ["name=Own"]}})
    assert re.fullmatch("[a-z]+-[a-z]+", run["name"])
    assert stack.ends(run["id"])[-1] == "Completed"
    (found,) = (one for one in listed(stack) if one["id"] == run["id"])
    assert re.fullmatch(NAME.replace("tiny", "Own"), found["name"])


def test_the_pages_of_prefect_find_their_server(stack: Machine) -> None:
    from resprout.infra.network import get

    assert get(f"{stack.api.removesuffix('/api')}/ui-settings")["api_url"] == stack.api


def test_ctrl_c_stops_watching_and_cancel_stops_the_run(stack: Machine, config: Path) -> None:
    settings = [word for one in LONG for word in ("--set", one)]
    code, shown = in_a_terminal(
        ["deploy", config, "--run", "--wait", *settings], stack, lambda text: "recover: started" in text
    )
    assert code == 130
    assert "stopped watching; the run goes on (resprout logs " in shown
    assert "the same command goes on" not in shown
    (run,) = (one for one in listed(stack, "--limit", "1") if one["state"] == "Running")
    refused = stack("retry", run["id"])
    assert refused.returncode == 2
    assert "has not ended (Running)" in refused.stderr
    done = stack("cancel", run["name"])
    assert done.returncode == 0, done.stderr
    followed = stack("logs", run["id"][:8], "--follow")
    assert followed.returncode == 130
    assert followed.stdout.splitlines()[-1].split(" ", 1)[1].startswith("state Cancelled")
    assert stack("retry", run["id"]).returncode == 0
    until(lambda: stack("logs", run["id"]).stdout.count("select: found in the cache") == 1, 60)
    (again,) = listed(stack, "--limit", "1")
    assert (again["id"], again["name"]) == (run["id"], run["name"]), "the same flow run keeps its name"
    assert stack("cancel", run["id"]).returncode == 0
    assert stack.ends(run["id"])[-1] == "Cancelled"


def test_runs_that_are_not_there_are_refused_with_near_names(stack: Machine, config: Path) -> None:
    for verb in ("logs", "cancel", "retry"):
        done = stack(verb, "tiny 2026")
        assert done.returncode == 2
        server, sentence = done.stderr.splitlines()
        assert server == f"asked: the stack of {stack.home} at {stack.api}"
        assert sentence.startswith("error: no flow run is called 'tiny 2026', nor does an id begin so; near")
    done = stack("deploy", config, "--wait")
    assert done.returncode == 2
    assert "--wait follows the run that --run starts" in done.stderr


def test_runs_of_a_home_are_listed_while_its_server_is_down(tmp_path: Path) -> None:
    path = write_run(tmp_path, **dict.fromkeys(("measure", "register", "gate")))
    machine = Machine(tmp_path / "home")
    nothing = machine("runs")
    assert nothing.returncode == 2
    assert "no flow run is known: nothing has run in" in nothing.stderr
    # As scripts start a command in the background.
    background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *COMMAND, "run", str(path), *LONG]
    with subprocess.Popen(background, env=environment(machine), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "recover: started" in line:
                break
        with another_homes_server(machine.ports["prefect"]) as asked:
            found = machine("runs", "--json")
            refused = machine("deploy", path)
        port = machine.ports["prefect"]
        foreign = f"the server at http://127.0.0.1:{port}/api is not of the data folder {machine.home}; set"
        assert f"not asked: {foreign}" in found.stderr
        assert f"asked: the server of command lines of {machine.home} at http://127.0.0.1:" in found.stderr
        assert refused.returncode == 2
        assert foreign in refused.stderr
        assert {(path, auth) for path, auth in asked} == {("/api/health", None)}, "it is sent no secret"
        (run,) = json.loads(found.stdout)
        assert re.fullmatch(NAME, run["name"])
        assert (run["state"], run["config"]) == ("Running", str(path))
        done = machine("cancel", run["id"][:8])
        assert done.returncode == 0, done.stderr
        process.stderr.read()
    assert process.returncode == 143
    (ended,) = listed(machine)
    assert (ended["id"], ended["state"]) == (run["id"], "Cancelled")
    refused = machine("retry", run["id"])
    assert refused.returncode == 2
    assert f"run the same command again (resprout run {path} {' '.join(LONG)})" in refused.stderr
    shown = machine("logs", run["id"])
    assert "state Cancelled" in shown.stdout
    assert "went to the terminal" in shown.stderr


@contextmanager
def another_homes_server(port: int) -> Iterator[list[tuple[str, str | None]]]:
    """A server that says that it is well; yields path and Authorization of each request."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Keep the terminal clean."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


def environment(machine: Machine) -> dict[str, str]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    port = {"RESPROUT_INFRA__STACK__PREFECT_PORT": str(machine.ports["prefect"])}
    return {**usual, **port, "RESPROUT_HOME": str(machine.home), "OMP_NUM_THREADS": "1"}


def in_a_terminal(
    words: list[str | Path], machine: Machine, enough: Callable[[str], bool], seconds: float = 120.0
) -> tuple[int, str]:
    """Exit code and output of a command in a terminal, with Ctrl-C once the output is enough."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(COMMAND[0], [*COMMAND, *map(str, words)], environment(machine))
    shown, pressed, end = "", False, time.monotonic() + seconds
    with suppress(OSError):
        while time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
            if not pressed and enough(shown):
                os.write(terminal, b"\x03")
                pressed = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown
