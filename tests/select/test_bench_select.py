"""The measurement of selections: each of its parts runs, and one that fails is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmarks" / "bench_select.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_each_part_prints_its_figure() -> None:
    done = bench("--rows", "4500", "--pool-rows", "4400", "--turns", "1", "--compared", "4")
    assert done.returncode == 0, done.stderr
    expected = ("4,500 embeddings of 384", "1,100 rows", "4,400 rows at 4 %", "divergence", "tfidf", "hidden")
    lines = done.stdout.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == list(expected)


def test_a_part_that_fails_is_told(tmp_path: Path) -> None:
    done = bench("--parts", "pool", "--pool", str(tmp_path / "missing.jsonl"))
    assert done.returncode == 1
    assert "pool failed" in done.stderr
