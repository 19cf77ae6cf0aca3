"""What is said before any work about a dtype that this processor is slow in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from tiny_run import config

AVX2 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n"
AVX512 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512bw\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"
SAID = "model.dtype is bfloat16, for which this processor has no instructions"
PLAN = """
import sys
from pathlib import Path
from resprout.flows import preflight
from resprout.flows.cli.main import main
preflight.CPUINFO = Path(sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize(
    ("processor", "dtype", "device", "said"),
    [
        (AVX2, "bfloat16", "cpu", True),
        (AVX2, "float16", "cpu", True),
        (AVX2, "float32", "cpu", False),
        (AVX2, "bfloat16", "cuda", False),
        (AVX512, "bfloat16", "cpu", False),
        (ARM, "bfloat16", "cpu", False),
        (None, "bfloat16", "cpu", False),
    ],
)
def test_a_dtype_that_the_processor_is_slow_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processor: str | None,
    dtype: Any,
    device: Any,
    said: bool,
) -> None:
    monkeypatch.setattr(preflight, "CPUINFO", tmp_path / "cpuinfo")
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    run = config(model={"source": "model", "dtype": dtype, "device": device})
    found = preflight.slow_dtype(RunConfig.model_validate(run))
    assert bool(found) == said
    assert all("give model.dtype: float32" in one for one in found)


def test_plan_says_so(finished: Any, tmp_path: Path, api_url: str) -> None:
    (tmp_path / "cpuinfo").write_text(AVX2)

    def plan(dtype: str) -> str:
        command = [sys.executable, "-c", PLAN, str(tmp_path / "cpuinfo"), "plan", str(finished.config)]
        env = {**os.environ, "RESPROUT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": api_url}
        done = subprocess.run(
            [*command, f"model.dtype={dtype}"],
            env=env,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert SAID in " ".join(plan("bfloat16").split())
    assert "has no instructions" not in plan("float32")
