"""Real signals, deferred to the end of a block and handed to the handler that was there before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from resprout.tasks.core.termination import ENDING, Termination, deferred_termination


class Came(BaseException):
    pass


def raises(number: int, frame: object) -> None:
    raise Came(number)


@contextmanager
def handled(number: int, handler: object) -> Iterator[None]:
    was = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(number, was)


def end_of(block: Callable[[Termination], None]) -> BaseException:
    """What comes out of a deferred block."""
    with pytest.raises((Came, ValueError)) as came, deferred_termination() as ending:
        block(ending)
    return came.value


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_noted_and_raises_at_the_end_of_the_block(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = []

    def block(ending: Termination) -> None:
        assert not ending.asked
        os.kill(os.getpid(), number)
        steps.append(ending.asked)
        assert f"{signal.Signals(number).name}: this step is finished and saved" in capsys.readouterr().err
        steps.append("saved")

    with handled(number, raises):
        came = end_of(block)
        assert signal.getsignal(number) is raises
    assert (type(came), came.args) == (Came, (number,))
    assert steps == [True, "saved"]


def test_without_a_signal_nothing_comes() -> None:
    before = {number: signal.getsignal(number) for number in ENDING}
    with deferred_termination() as ending:
        assert signal.getsignal(signal.SIGTERM) is not before[signal.SIGTERM]
    assert not ending.asked
    assert {number: signal.getsignal(number) for number in ENDING} == before


def test_an_error_in_the_block_does_not_swallow_the_signal() -> None:
    def fails(ending: Termination) -> None:
        raise ValueError("NaN")

    def asked_and_fails(ending: Termination) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        fails(ending)

    with handled(signal.SIGTERM, raises):
        came = end_of(asked_and_fails)
        assert (type(came), type(came.__context__)) == (Came, ValueError)
        assert type(end_of(fails)) is ValueError
        assert signal.getsignal(signal.SIGTERM) is raises


def test_a_second_signal_does_not_wait() -> None:
    steps = []

    def block(ending: Termination) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        steps.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("second")

    with handled(signal.SIGTERM, raises), handled(signal.SIGINT, raises):
        assert end_of(block).args == (signal.SIGINT,)
        assert steps == ["first"]
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is raises


def test_one_that_is_ignored_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    for number in (signal.SIGHUP, signal.SIGTERM):
        with handled(number, signal.SIG_IGN), deferred_termination() as ending:
            os.kill(os.getpid(), number)
            assert not ending.asked
        assert signal.getsignal(signal.SIGINT) is before


def test_a_block_in_a_block_leaves_it_to_the_outer_one() -> None:
    steps = []

    def block(outer: Termination) -> None:
        with deferred_termination() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append((inner.asked, outer.asked))
        steps.append((inner.asked, outer.asked))

    with handled(signal.SIGTERM, raises):
        assert type(end_of(block)) is Came
    assert steps == [(True, False), (True, True)]


def test_in_another_thread_nothing_is_noted() -> None:
    found = []

    def body() -> None:
        with deferred_termination() as ending:
            os.kill(os.getpid(), signal.SIGTERM)
            found.append(ending.asked)

    came: list[int] = []
    with handled(signal.SIGTERM, lambda number, frame: came.append(number)):
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    assert (found, came) == ([False], [signal.SIGTERM])


DEFAULT = """
import os, signal
from resprout.tasks.core.termination import deferred_termination
with deferred_termination():
    os.kill(os.getpid(), signal.SIGTERM)
    print("saved", flush=True)
print("still here", flush=True)
"""


def test_where_no_one_handles_it_the_process_ends_by_it() -> None:
    done = subprocess.run([sys.executable, "-c", DEFAULT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "saved\n"), done.stderr


PREFECT = """
import os, signal
from prefect.utilities.engine import capture_sigterm
from resprout.flows.session import end_on_signals
from resprout.configs.errors import Terminated
from resprout.tasks.core.termination import deferred_termination
noted = []
end_on_signals(lambda: noted.append(1))
try:
    with capture_sigterm(), deferred_termination():
        os.kill(os.getpid(), signal.SIGTERM)
        print("saved", noted, flush=True)
except Terminated as end:
    print(type(end.__context__).__name__, end.exit_code, noted)
"""


def test_prefect_s_handler_and_then_the_command_line_s_are_handed_it() -> None:
    done = subprocess.run([sys.executable, "-c", PREFECT], capture_output=True, text=True, check=False)
    assert done.stdout == "saved []\nTerminationSignal 143 [1]\n", done.stderr
