"""Models are measured together, each in a process of its own; medians, intervals and names by hand."""

from __future__ import annotations

import itertools
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import psutil
import pytest

from one_machine import until
from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import MeasureConfig
from resprout.tasks.core.hardware import fingerprint
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.stage import Volume
from resprout.tasks.measure import processes
from resprout.tasks.measure.processes import Child, ModelTimes, in_turn, starter, together
from resprout.tasks.measure.ratio import Ratio, coverage, metrics_of, ratio_in, ratio_of
from resprout.tasks.measure.stage import measure, settings, summary, tokens
from resprout.tasks.measure.worker import MeasureRequest, Ready, Times
from tiny_models import write_tiny_folder

REQUEST = MeasureRequest("model", "float32", "cpu", False, [(8, 2, 1)], 1, 1)


def test_summary_by_hand():
    """Prefill: 2 * 100 tokens at the median 2 s: 100/s, spread (4 - 1) / 2. Decode: 2 * 10 at 0.5 s: 40/s.

    The other takes half the seconds in each round: ratios of 2 throughout, in too few rounds to say so.
    """
    config = MeasureConfig(prefill_tokens=100, decode_tokens=10, batch_size=2, repeats=3)
    taken = [[(4.0, 0.5)], [(1.0, 0.5)], [(2.0, 0.5)]]
    halved = [[(prefill / 2, decode / 2) for prefill, decode in points] for points in taken]
    dense = ModelTimes(0.5, 1.5, 2, taken, peak_memory_bytes=3_000_000)
    pruned = ModelTimes(0.5, 1.0, 2, halved, peak_memory_bytes=2_000_000)
    metrics, details = summary(config, {"dense": dense, "pruned": pruned})
    assert metrics_of("dense", metrics) == {
        "prefill100_batch2_tokens_per_s": 100.0,
        "decode10_batch2_tokens_per_s": 40.0,
        "peak_memory_mb": 3.0,
        "load_seconds": 1.5,
    }
    assert metrics_of("pruned", metrics)["prefill100_batch2_tokens_per_s"] == 200.0
    assert ratio_in(metrics_of("pruned", metrics), "decode10_batch2_tokens_per_s") == Ratio(2.0, 1.0, 2.0)
    assert ratio_in(metrics_of("dense", metrics), "decode10_batch2_tokens_per_s") is None
    prefill = details["models"]["dense"]["prefill100_batch2"]
    assert prefill == {"tokens": 200, "seconds": [4.0, 1.0, 2.0], "spread": 1.5}
    assert details["models"]["pruned"]["decode10_batch2"]["spread"] == 0.0
    assert (details["rounds"], details["coverage"]) == (3, 0.75)
    single = summary(MeasureConfig(prefill_tokens=100, decode_tokens=10), {"dense": dense})[0]
    assert set(metrics_of("dense", single)) >= {"prefill100_tokens_per_s", "decode10_tokens_per_s"}


def test_tokens_by_hand_of_what_a_key_holds():
    """Two models, three rounds, 10 + 2 tokens and twice 8 + 2: 2 * 3 * (12 + 20)."""
    config = MeasureConfig(
        prefill_tokens=10, decode_tokens=2, repeats=3, grid=[{"prefill_tokens": 8, "batch_size": 2}]
    )
    assert tokens(settings(config), Volume(inputs=2)) == 192


def test_a_grid_by_hand():
    """Each point with its own tokens; a prompt of two points is the first's, and decoding names its own."""
    grid = [{"prefill_tokens": 50}, {"decode_tokens": 20}, {"prefill_tokens": 50, "batch_size": 4}]
    config = MeasureConfig(prefill_tokens=100, decode_tokens=10, repeats=3, grid=grid)
    taken = [[(1.0, 1.0), (0.25, 2.0), (7.0, 4.0), (2.0, 8.0)]] * 3
    metrics, details = summary(config, {"dense": ModelTimes(0.0, 0.0, 1, taken)})
    assert {name: value for name, value in metrics_of("dense", metrics).items() if "tokens" in name} == {
        "prefill100_tokens_per_s": 100.0, "decode10_tokens_per_s": 10.0,
        "prefill50_tokens_per_s": 200.0, "decode10_after50_tokens_per_s": 5.0,
        "decode20_tokens_per_s": 5.0,
        "prefill50_batch4_tokens_per_s": 100.0, "decode10_after50_batch4_tokens_per_s": 5.0,
    }  # fmt: skip
    assert details["models"]["dense"]["prefill50_batch4"]["tokens"] == 200
    with pytest.raises(ValueError, match=r"measure.grid holds .*prefill_tokens: 512, .* a second time"):
        MeasureConfig(grid=[{"prefill_tokens": 512}])


@pytest.mark.parametrize(
    ("others", "median", "low", "high", "shown"),
    [
        # Nine rounds: of the sorted ratios the 5th, and the 2nd and 8th as the interval (96.1 %).
        ([1.0] * 9, 1.0, 1.0, 1.0, "no difference, x1.00-1.00"),
        ([0.5] * 8 + [100.0], 2.0, 2.0, 2.0, "x2.00, x2.00-2.00"),
        ([2.0, 2.0, 1.25, 1.0, 1.0, 1.0, 0.8, 0.5, 0.5], 1.0, 0.5, 2.0, "no difference, x0.50-2.00"),
        # Six rounds: all of them (96.9 %).
        ([0.5] * 6, 2.0, 2.0, 2.0, "x2.00, x2.00-2.00"),
        # Five show no difference, whatever they are: all of them are 93.8 %.
        ([0.5] * 5, 2.0, 1.0, 2.0, "no difference, x1.00-2.00"),
        ([1.25, 0.8, 0.5, 0.5, 0.5], 2.0, 0.8, 2.0, "no difference, x0.80-2.00"),
    ],
)
def test_a_ratio_and_its_interval_by_hand(others, median, low, high, shown):
    ratio = ratio_of([1.0] * len(others), others)
    assert (ratio.median, ratio.low, ratio.high) == (median, low, high)
    assert str(ratio) == shown
    assert ratio.different == ("no difference" not in shown)


def test_the_coverage_is_that_of_order_statistics():
    """P(all of n on one side of the median) = 2 / 2^n; with one left out at each end 2 (1 + n) / 2^n."""
    found = {count: coverage(count) for count in (3, 5, 6, 8, 9)}
    assert found == {3: 1 - 2 / 8, 5: 1 - 2 / 32, 6: 1 - 2 / 64, 8: 1 - 2 / 256, 9: 1 - 20 / 512}


class Machine:
    """Measuring processes on a machine of which one run takes as long as `seconds` says, run by run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> None:
        self.seconds, self.asked, self.alive, self.most = seconds, list[str](), 0, 0
        monkeypatch.setattr(processes, "starter", lambda: nullcontext(self.started))

    @contextmanager
    def started(self, request: MeasureRequest) -> Iterator[Machine]:
        self.alive += 1
        self.most = max(self.most, self.alive)
        yield Model(self, request.folder)
        self.alive -= 1


class Model:
    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def load(self) -> Ready:
        return Ready(0.0, 0.0, 1)

    def times(self, runs: int) -> Times:
        self.machine.asked += [self.name] * runs
        taken = [next(self.machine.seconds) for _ in range(runs)]
        return Times([[(one, one)] for one in taken], 0)


MODELS = {name: replace(REQUEST, folder=name) for name in ("dense", "pruned", "recovered")}


@pytest.mark.parametrize("measured", [together, in_turn])
@pytest.mark.parametrize(
    "seconds",
    [
        lambda: itertools.chain([1.0] * 13, itertools.repeat(3.0)),
        lambda: (1.0 + 0.05 * number for number in itertools.count()),
        lambda: itertools.chain([1.0] * 5, [4.0] * 9, itertools.repeat(1.0)),
    ],
    ids=["a load from halfway on", "slower all the time", "a load for a third of it"],
)
def test_what_the_machine_does_meanwhile_makes_equal_models_no_different(monkeypatch, measured, seconds):
    Machine(monkeypatch, seconds())
    answers = measured(MODELS, 9, silent)
    for name in ("pruned", "recovered"):
        dense, own = ([points[0][1] for points in answers[one].seconds] for one in ("dense", name))
        ratio = ratio_of(dense, own)
        assert not ratio.different, ratio


def test_models_have_their_turns_there_and_back(monkeypatch):
    machine = Machine(monkeypatch, itertools.repeat(1.0))
    together(MODELS, 3, silent)
    there = ["dense", "pruned", "recovered"]
    assert machine.asked == [*there, *reversed(there), *there]
    assert machine.most == 3
    one = Machine(monkeypatch, itertools.repeat(1.0))
    answers = in_turn(MODELS, 5, silent)
    back = [name for name in reversed(there) for _ in range(2)]
    assert one.asked == [*(name for name in there for _ in range(3)), *back]
    assert one.most == 1, "one process at a time"
    assert {len(answer.seconds) for answer in answers.values()} == {5}


@pytest.mark.parametrize(("free", "order"), [(10**12, "together"), (2_000_000_000, "in turn")])
def test_measuring_models_through_the_door(tmp_path, monkeypatch, free, order):
    """Two processes of a gigabyte each do not fit into two with the models' own bytes."""
    monkeypatch.setattr("resprout.tasks.measure.stage.free_memory", lambda device: free)
    folders = {
        name: write_tiny_folder(tmp_path / name, "qwen2", dtype="bfloat16") for name in ("dense", "pruned")
    }
    grid = [{"prefill_tokens": 8, "batch_size": 1}]
    config = MeasureConfig(prefill_tokens=32, decode_tokens=4, repeats=3, batch_size=2, threads=1, grid=grid)
    measure.body(Job(config), folders, tmp_path, silent)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    runs = ("prefill32_batch2", "decode4_batch2", "prefill8", "decode4_after8")
    speeds = {f"{run}_tokens_per_s" for run in runs}
    assert set(metrics_of("dense", metrics)) == {*speeds, "peak_memory_mb", "load_seconds"}
    pruned = metrics_of("pruned", metrics)
    assert {name for name in pruned if ratio_in(pruned, name)} == speeds
    assert all(math.isfinite(value) and value > 0 for value in metrics.values())
    # Python with torch takes more than 100 MB; a KiB taken for a byte would show as less than 1.
    assert 100 < pruned["peak_memory_mb"] < 20_000
    details = json.loads((tmp_path / "details.json").read_text())
    runs = details["models"]["pruned"]
    assert len(runs["prefill32_batch2"]["seconds"]) == len(runs["decode4_batch2"]["seconds"]) == 3
    assert (details["threads"], details["warmup"], details["order"]) == (1, 2, order)
    assert details["hardware"] == fingerprint()
    assert str(tmp_path) not in (tmp_path / "details.json").read_text()


def test_peak_memory_is_not_that_of_the_process_that_started_it(tmp_path):
    """This process holds 2 GB, touched, while the child measures a model of half a megabyte."""
    folder = write_tiny_folder(tmp_path / "model")
    ballast = np.ones(2_000_000_000, dtype=np.uint8)
    with starter() as start, start(replace(REQUEST, folder=str(folder))) as child:
        child.load()
        times = child.times(3)
    assert ballast[-1] == 1
    assert 100e6 < times.peak_memory_bytes < 1.5e9


def test_a_prompt_longer_than_the_model_takes(tmp_path):
    folder = write_tiny_folder(tmp_path / "model")
    with pytest.raises(BadInput, match=r"is 260, but the model takes 256 positions; .* at most 252"):
        measure.body(
            Job(MeasureConfig(prefill_tokens=256, decode_tokens=4)), {"dense": folder}, tmp_path, silent
        )


def test_a_child_that_fails_says_why_and_leaves_no_process(tmp_path):
    request = replace(REQUEST, folder=str(tmp_path))
    with pytest.raises(StageFailed, match=r"measuring process stopped \(.*no config.json"):
        together({"dense": request}, 3, silent)


def both() -> tuple[psutil.Process, psutil.Process]:
    """The process that reads the libraries, and the one that it forked."""
    first = max(psutil.Process().children(), key=lambda one: one.create_time())
    until(lambda: first.children(), 60)
    (forked,) = first.children()
    return first, forked


def killed(request: MeasureRequest) -> None:
    with starter() as start, start(request) as child:
        child.load()
        both()[1].kill()
        child.times(1)


def test_a_child_that_is_killed_or_finds_no_library_is_told_of(tmp_path, monkeypatch):
    folder = write_tiny_folder(tmp_path / "model")
    with pytest.raises(StageFailed, match=r"stopped \(it was killed\); if it ran out of memory"):
        killed(replace(REQUEST, folder=str(folder)))
    monkeypatch.setattr(
        "resprout.tasks.measure.processes.COMMAND", [sys.executable, "-c", "import none_such"]
    )
    with pytest.raises(StageFailed, match=r"stopped \(.*No module named 'none_such'"):
        together({"dense": REQUEST}, 3, silent)


@pytest.mark.parametrize("key", [False, True], ids=["by an error", "by a key"])
def test_a_process_that_computes_ends_at_once(tmp_path, key):
    """A million runs to warm up are cut off by what is raised in the block, and by a terminal's Ctrl-C."""
    folder = write_tiny_folder(tmp_path / "model")
    seen, words = list[psutil.Process](), list[str]()

    def load(child: Child) -> None:
        with pytest.raises(StageFailed) as failed:
            child.load()
        words.append(str(failed.value))

    def interrupted() -> None:
        with starter() as start, start(replace(REQUEST, folder=str(folder), warmup=10**6)) as child:
            threading.Thread(target=load, args=[child], daemon=True).start()
            seen.extend(both())
            until(lambda: seen[1].cpu_times().user > 0.5, 60)
            if key:
                seen[0].send_signal(signal.SIGINT)
                until(lambda: words, 10)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        interrupted()
    until(lambda: words, 10)
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in seen)


def test_the_door_imports_no_torch_and_is_keyed_by_hardware():
    code = "import sys, resprout.tasks.measure.stage as s; print('torch' in sys.modules, s.measure.hardware)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_timings_with_other_threads_are_others(monkeypatch):
    def key(**changes):
        return measure.key(Job(MeasureConfig(**changes)), {})

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, fixed = key(), key(threads=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert key() != one
    assert key() == fixed == key(threads=2)
