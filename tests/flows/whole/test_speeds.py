"""Speeds of a run: all models measured together, so that what the machine does meanwhile hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tiny_run import write_run

SPEEDING_UP = """
import os, sys, time
if "resprout.tasks.measure.worker" in sys.orig_argv:
    calls, at = os.environ["CALLS"], [0.0]

    def clock():
        with open(calls, "ab") as file:
            file.write(b".")
        at[0] += 0.97 ** os.path.getsize(calls)
        return at[0]

    time.perf_counter = clock
"""
"""A sitecustomize.py: by the clock of measuring processes the machine gets 3 % faster at each look at it.

Looks are counted over all processes, so one that begins later is faster by this clock alone.
"""
SHORT = {"select": None, "recover": None, "gate": None, "register": None}


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Any:
    """A run that cuts next to nothing, on a machine that gets faster all the time."""
    root = tmp_path_factory.mktemp("drifted")
    (root / "sitecustomize.py").write_text(SPEEDING_UP)
    path = write_run(root, **SHORT)
    env = {"PYTHONPATH": str(root), "CALLS": str(root / "calls")}
    found = resprout("run", path, "--json", home=root / "home", env=env)
    assert found.code == 0, found.err
    return found, root / "home"


def test_a_machine_that_gets_faster_makes_no_model_faster(drifted: Any) -> None:
    models = drifted[0].result["models"]
    for speed in ("prefill16_tokens_per_s", "decode4_tokens_per_s"):
        dense, pruned = (models[name]["metrics"][speed] for name in ("dense", "pruned"))
        assert pruned == pytest.approx(dense, rel=0.15), speed


def test_a_ratio_within_the_noise_is_called_no_difference(drifted: Any) -> None:
    """Terminal, report and the version's description, beside the interval."""
    found, home = drifted
    pages = [(home / "reports" / "tiny" / name).read_text() for name in ("report.html", "summary.md")]
    for page in (found.err, *pages):
        rows = [line for line in page.splitlines() if ", tokens/s" in line]
        assert len(rows) == 2, page
        assert all("no difference, x0.9" in row for row in rows), rows


def test_no_measurement_of_an_earlier_run_stands_beside_a_new_one(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    shown = resprout("plan", finished.config, "recover.rank=3", "--json", home=finished.home).result
    measured = [one["cached"] for one in shown["stages"] if one["name"].startswith("measure")]
    assert measured == [False], "the dense model is measured again, with the others"
