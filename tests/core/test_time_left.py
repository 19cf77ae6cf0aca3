"""Time left by hand, and where people see it."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console

from resprout.flows import session
from resprout.flows.cli import display
from resprout.flows.cli.display import LineDisplay, TerminalDisplay
from resprout.flows.session import LogDisplay
from resprout.tasks.core import run, time_left
from resprout.tasks.core.job import silent
from resprout.tasks.core.run import ThrottledProgress
from resprout.tasks.core.time_left import TimeLeft, words


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_said_in_the_first_seconds_and_then_by_the_last_steps() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    found = []
    for step in range(1, 5):
        clock.now += 2.0
        found.append(left(step, 1000))
    assert found == [None, None, None, pytest.approx(2.0 * 996)]
    # Ten times slower: after a minute of that, what was before is forgotten.
    for step in range(5, 12):
        clock.now += 20.0
        found.append(left(step, 1000))
    assert found[-1] == pytest.approx(20.0 * 989)


def test_a_training_that_goes_on_counts_its_own_steps_alone() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(500, 600)
    clock.now += 10.0
    assert left(510, 600) == pytest.approx(90.0)


def test_slow_steps_count_by_the_last_two_looks() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    for step in range(3):
        left(step, 20)
        clock.now += 300.0
    assert left(3, 20) == pytest.approx(300.0 * 17)


def test_few_steps_another_loop_and_standing_still() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left(1, 3)
    clock.now += 60
    assert left(2, 3) is None
    assert left(5, 50) is None, "another loop begins"
    clock.now += 60
    assert left(5, 50) is None
    clock.now += 1
    assert left(6, 50) == pytest.approx(61 * 44)
    assert left(1, 50) is None, "the loop again"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.0, "about 0 s left"),
        (89.4, "about 89 s left"),
        (91.0, "about 2 min left"),
        (3600.0, "about 60 min left"),
        (3600.0 * 25.5, "about 25 h 30 min left"),
    ],
)
def test_words(seconds: float | None, shown: str) -> None:
    assert words(seconds) == shown


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((session, "LINE_SECONDS"), (display, "LINE_SECONDS"), (run, "PROGRESS_SECONDS")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(time_left, "SECONDS", 0.0)


def test_lines_and_bars_show_it(at_once: None, caplog: pytest.LogCaptureFixture) -> None:
    written = io.StringIO()
    update = LineDisplay(Console(file=written, width=120)).started("recover")
    update(1, 100, "steps")
    update(2, 100, "steps")
    assert "recover: 1 of 100 steps\n" in written.getvalue()
    assert "recover: 2 of 100 steps, about 0 s left" in written.getvalue()
    with caplog.at_level(logging.INFO):
        update = LogDisplay().started("recover")
        update(1, 100, "steps")
        update(2, 100, "steps")
    assert "2 of 100 steps, about 0 s left" in caplog.records[-1].getMessage()
    assert caplog.records[-1].__dict__["seconds_left"] == 0
    bars = TerminalDisplay(Console(file=io.StringIO(), force_terminal=True, width=120))
    update = bars.started("recover")
    assert bars.bars.tasks[0].fields["what"] == "starting", "a model may load before the first step"
    update(1, 100, "steps")
    update(2, 100, "steps")
    (drawn,) = bars.bars.tasks
    assert (drawn.fields["what"], drawn.fields["left"]) == ("2/100 steps", "about 0 s left")
    bars.bars.stop()


def test_prefect_s_artifact_shows_it(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "prefect.artifacts.create_progress_artifact", lambda **given: made.append(given) or "id"
    )
    monkeypatch.setattr("prefect.artifacts.update_progress_artifact", lambda _, **given: made.append(given))
    update = ThrottledProgress(silent, "recover", lambda: None)
    update(1, 100, "steps")
    update(2, 100, "steps")
    assert [one["description"] for one in made] == ["steps", "steps, about 0 s left"]
    assert [one["progress"] for one in made] == [1.0, 2.0]
