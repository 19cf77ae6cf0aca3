"""Waiting for a server that is down, with a clock that only the waits move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resprout.configs.errors import BadInput, StageFailed, Transient, Unreachable
from resprout.infra import retry


@pytest.fixture
def worked() -> list[float]:
    """Seconds that calls have lasted."""
    return []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, worked: list[float]) -> list[float]:
    """The pauses taken."""
    taken: list[float] = []
    monkeypatch.setattr(retry.time, "monotonic", lambda: 1000.0 + sum(taken) + sum(worked))
    monkeypatch.setattr(retry.time, "sleep", taken.append)
    return taken


def failing(*errors: Exception) -> Callable[[], str]:
    left: list[Any] = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "made"

    return work


def test_an_outage_is_slept_through(waits: list[float], caplog: pytest.LogCaptureFixture) -> None:
    work = failing(*[Transient("s3://bucket is busy")] * 4, Unreachable("MLflow cannot be used"))
    assert retry.retry_while_down(work, 600.0) == "made"
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0]
    assert "s3://bucket is busy; trying again in 5 s, for 600 s more" in caplog.text


def test_an_outage_without_end_is_given_up_at_the_limit(waits: list[float]) -> None:
    with pytest.raises(Transient, match="busy 5"):
        retry.retry_while_down(failing(*[Transient(f"busy {index}") for index in range(1, 9)]), 60.0)
    assert waits == [5.0, 10.0, 20.0, 25.0]


def test_hours_of_work_before_an_outage_are_no_part_of_it(waits: list[float], worked: list[float]) -> None:
    work = failing(*[Transient("busy")] * 3)
    lasting = iter([7200.0, 1.0, 7200.0, 1.0])

    def long() -> str:
        worked.append(next(lasting))
        return work()

    assert retry.retry_while_down(long, 60.0) == "made"
    assert waits == [5.0, 10.0, 5.0]


def test_who_is_told_to_stop_waits_no_longer(waits: list[float]) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retry.retry_while_down(failing(Transient("busy")), 60.0, stop=stop)
    assert waits == []


def test_what_got_on_in_between_begins_the_count_anew(waits: list[float]) -> None:
    work = failing(*[Transient("busy")] * 6)
    assert retry.retry_while_down(work, 12.0, progressed=lambda: len(waits) % 2 == 0) == "made"
    assert waits == [5.0, 7.0] * 3


@pytest.mark.parametrize("error", [BadInput("no such model"), StageFailed("NaN")])
def test_what_time_does_not_mend_is_raised_at_once(waits: list[float], error: Exception) -> None:
    with pytest.raises(type(error)):
        retry.retry_while_down(failing(error), 600.0)
    assert waits == []


def test_without_patience_the_first_fault_ends_it(waits: list[float]) -> None:
    with pytest.raises(Transient):
        retry.retry_while_down(failing(Transient("busy")), 0.0)
    assert waits == []
