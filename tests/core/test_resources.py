"""What a piece of work costs."""

from __future__ import annotations

import sys
import time

import pytest

from resprout.tasks.core.resources import metered

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is reset through /proc")


def held(size: int) -> int:
    block = bytearray(size)
    block[:: 4096 // 2] = bytes(len(block[:: 4096 // 2]))
    return len(block)


@linux
def test_the_peak_is_that_of_the_work_inside_and_not_of_what_was_before() -> None:
    with metered("cpu") as large:
        held(400 * MIB)
    with metered("cpu") as small:
        held(MIB)
    assert large.peak_memory_bytes
    assert small.peak_memory_bytes
    assert large.peak_memory_bytes - small.peak_memory_bytes > 300 * MIB


def test_waiting_takes_time_and_no_processor() -> None:
    with metered("cpu") as waiting:
        time.sleep(0.2)
    with metered("cpu") as working:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert waiting.seconds >= 0.2 > 0.15 > waiting.cpu_seconds
    assert working.cpu_seconds >= 0.2


def test_work_that_fails_has_its_cost_too() -> None:
    with pytest.raises(ValueError, match="no"), metered("cpu") as cost:
        raise ValueError("no")
    assert cost.seconds > 0


def test_a_peak_that_another_meter_reset_is_not_told() -> None:
    with metered("cpu") as outer:
        with metered("cpu") as inner:
            held(MIB)
        held(MIB)
    assert outer.peak_memory_bytes is inner.peak_memory_bytes is None
    with metered("cpu") as alone:
        held(MIB)
    assert (alone.peak_memory_bytes is not None) == sys.platform.startswith("linux")
