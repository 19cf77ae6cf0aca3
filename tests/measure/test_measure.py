"""A model is measured in a process of its own; medians and names follow the protocol."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import MeasureConfig
from resprout.tasks.job import Job, silent
from resprout.tasks.measure.hardware import fingerprint
from resprout.tasks.measure.stage import ask_child, measure, summary
from resprout.tasks.measure.worker import Answer, Request
from tiny_models import write_tiny_folder


def test_summary_by_hand():
    """Prefill: 2 * 100 tokens at the median 2 s: 100/s, spread (4 - 1) / 2. Decode: 2 * 10 at 0.5 s: 40/s."""
    config = MeasureConfig(prefill_tokens=100, decode_tokens=10, batch_size=2, repeats=3)
    answer = Answer(1.5, [4.0, 1.0, 2.0], [0.5, 0.5, 0.5], peak_memory_bytes=3_000_000, threads=2)
    metrics, details = summary(config, answer)
    assert metrics == {
        "prefill100_batch2_tokens_per_s": 100.0,
        "decode10_batch2_tokens_per_s": 40.0,
        "peak_memory_mb": 3.0,
        "load_seconds": 1.5,
    }
    assert details["prefill100_batch2"] == {"tokens": 200, "seconds": [4.0, 1.0, 2.0], "spread": 1.5}
    assert details["decode10_batch2"]["spread"] == 0.0
    single = summary(MeasureConfig(prefill_tokens=100, decode_tokens=10), answer)[0]
    assert set(single) >= {"prefill100_tokens_per_s", "decode10_tokens_per_s"}


def test_measuring_a_model_through_the_door(tmp_path):
    folder = write_tiny_folder(tmp_path / "model", "qwen2", dtype="bfloat16")
    config = MeasureConfig(prefill_tokens=32, decode_tokens=4, repeats=3, batch_size=2, threads=1)
    measure.body(Job(config), {"model": folder}, tmp_path, silent)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {
        "prefill32_batch2_tokens_per_s",
        "decode4_batch2_tokens_per_s",
        "peak_memory_mb",
        "load_seconds",
    }
    assert all(math.isfinite(value) and value > 0 for value in metrics.values())
    # Python with torch takes more than 100 MB; a KiB taken for a byte would show as less than 1.
    assert 100 < metrics["peak_memory_mb"] < 20_000
    details = json.loads((tmp_path / "details.json").read_text())
    assert len(details["prefill32_batch2"]["seconds"]) == len(details["decode4_batch2"]["seconds"]) == 3
    assert (details["threads"], details["warmup"]) == (1, 2)
    assert details["hardware"] == fingerprint()
    assert str(tmp_path) not in (tmp_path / "details.json").read_text()


def test_peak_memory_is_not_that_of_the_process_that_started_it(tmp_path):
    """This process holds 2 GB, touched, while the child measures a model of half a megabyte."""
    folder = write_tiny_folder(tmp_path / "model")
    ballast = np.ones(2_000_000_000, dtype=np.uint8)
    answer = ask_child(Request(str(folder), "float32", "cpu", False, 8, 2, 1, 3, 1, 1))
    assert ballast[-1] == 1
    assert 100e6 < answer.peak_memory_bytes < 1.5e9


def test_a_prompt_longer_than_the_model_takes(tmp_path):
    folder = write_tiny_folder(tmp_path / "model")
    with pytest.raises(BadInput, match=r"is 260, but the model takes 256 positions; .* at most 252"):
        measure.body(
            Job(MeasureConfig(prefill_tokens=256, decode_tokens=4)), {"model": folder}, tmp_path, silent
        )


def test_a_child_that_fails_says_why(tmp_path):
    request = Request(str(tmp_path), "float32", "cpu", False, 8, 2, 1, 3, 1, None)
    with pytest.raises(StageFailed, match=r"measuring process stopped \(.*no config.json"):
        ask_child(request)


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
