"""Signals as terminals and supervisors send them: to the whole process group, server included."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from commands import COMMAND
from tiny_run import write_run

LONG = ("calibrate.method=self_generated", "calibrate.samples=1024", "calibrate.seq_len_tokens=128")
"""Overrides with which calibrate takes many seconds on the tiny model: a signal comes in its middle."""
SECONDS = 10.0
"""What a run may take to end once a signal came."""


def environment(home: Path) -> dict[str, str]:
    """No Prefect server is named, as on a user's machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "RESPROUT_HOME": str(home), "OMP_NUM_THREADS": "1"}


def servers(home: Path) -> list[psutil.Process]:
    """Processes that serve Prefect from this home's database."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("PREFECT_HOME") == str(home / "prefect")
            if ours and process.environ().get("PREFECT__SERVER_EPHEMERAL"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end_of_servers(home: Path, seconds: float = 15.0) -> list[psutil.Process]:
    """The servers that are left after some seconds; none as soon as there is none."""
    end = time.monotonic() + seconds
    while servers(home) and time.monotonic() < end:
        time.sleep(0.2)
    return servers(home)


@dataclass
class InTerminal:
    """A command whose terminal this test holds the other end of."""

    process: subprocess.Popen[bytes]
    terminal: int
    text: str = ""
    begun: float = field(default_factory=time.monotonic)

    def read_until(self, wanted: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end, self.text
            if not self._read():
                raise AssertionError(f"ended before {wanted!r}: {self.text}")

    def _read(self) -> bool:
        try:
            found = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.text += found.decode(errors="replace")
        return bool(found)

    def end(self) -> int:
        """The exit code, once the terminal is read to its end."""
        while self._read():
            pass
        return self.process.wait(timeout=120)


@contextmanager
def in_terminal(home: Path, *arguments: str | Path) -> Iterator[InTerminal]:
    """Run `resprout` as the foreground process group of a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment(home), "COLUMNS": "200"},
        start_new_session=True,
        preexec_fn=lambda: _own_terminal(theirs),
    )
    os.close(theirs)
    try:
        yield InTerminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _own_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def started(config: Path, home: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run away from any terminal."""
    return subprocess.Popen(
        [*COMMAND, "run", str(config), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(home),
    )


CANCELLED = "cancelled; finished stages are kept, and the same command goes on from there\r\n"
CURSOR_SHOWN, CURSOR_HIDDEN = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_run(tmp_path)


def test_ctrl_c_in_a_terminal_ends_the_run_and_keeps_what_is_finished(config: Path, home: Path) -> None:
    with in_terminal(home, "run", config, *LONG) as run:
        run.read_until("evaluation data: done")
        run.read_until("calibrate")
        time.sleep(0.5)
        pressed = time.monotonic()
        os.write(run.terminal, b"\x03")
        assert (run.end(), run.text[-len(CANCELLED) :]) == (130, CANCELLED)
    assert time.monotonic() - pressed < SECONDS
    assert run.text.rfind(CURSOR_SHOWN) >= run.text.rfind(CURSOR_HIDDEN), "the terminal's cursor stays hidden"
    assert end_of_servers(home) == []
    with in_terminal(home, "run", config, *LONG) as again:
        again.read_until("evaluation data: found in the cache")
        os.write(again.terminal, b"\x03")
        assert again.end() == 130


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_process_group_ends_the_run(
    config: Path, home: Path, number: signal.Signals, code: int
) -> None:
    with in_terminal(home, "run", config, *LONG) as run:
        run.read_until("evaluation data: done")
        run.read_until("calibrate")
        time.sleep(0.5)
        sent = time.monotonic()
        os.killpg(run.process.pid, number)
        assert (run.end(), run.text[-len(CANCELLED) :]) == (code, CANCELLED)
    assert time.monotonic() - sent < SECONDS
    assert end_of_servers(home) == []


@pytest.mark.faults
def test_a_killed_run_leaves_no_server(config: Path, home: Path) -> None:
    run = started(config, home, *LONG)
    for line in run.stdout or ():
        if line.startswith("calibrate: started"):
            break
    assert len(servers(home)) == 1
    run.kill()
    run.wait()
    assert end_of_servers(home) == []


@pytest.mark.faults
def test_ten_runs_at_once_share_a_server_that_outlives_the_one_that_started_it(
    config: Path, home: Path
) -> None:
    first = started(config, home)
    end = time.monotonic() + 120
    while not (served := servers(home)) and time.monotonic() < end:
        time.sleep(0.1)
    others = [started(config, home) for _ in range(9)]
    for line in first.stdout or ():
        if ": started" in line:
            break
    first.kill()
    first.wait()
    ended = [(run.communicate(timeout=540)[0], run.returncode) for run in others]
    assert [code for _, code in ended] == [0] * 9, [text[-500:] for text, code in ended if code]
    assert len(served) == 1
    assert end_of_servers(home) == []


def test_a_full_disk_is_named_before_a_server_is_started(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        done = subprocess.run(
            [*COMMAND, "run", str(config)], capture_output=True, text=True, env=environment(disk), check=False
        )
    finally:
        subprocess.run(["umount", disk], check=True)
    assert (done.returncode, "MB free" in done.stderr) == (2, True), done.stderr
    assert "RESPROUT_HOME" in done.stderr
