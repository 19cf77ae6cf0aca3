"""Door of measuring: speed and memory of one model in a process of its own.

A measurement is no claim of equal bytes: the hardware's fingerprint is part of its key, and its content
holds times.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import MeasureConfig
from resprout.tasks.job import Job, Progress
from resprout.tasks.measure.hardware import fingerprint
from resprout.tasks.measure.worker import Answer, Request
from resprout.tasks.models.size import shape_of
from resprout.tasks.stage import stage


def settings(config: MeasureConfig) -> dict[str, Any]:
    """The section, with the threads that the environment sets where the section leaves them to torch."""
    threads = config.threads or os.environ.get("OMP_NUM_THREADS") or "default"
    return {**config.key_data(), "threads": str(threads)}


@stage("measure", kind="measurement", libraries=("torch", "transformers"), hardware=True, settings=settings)
def measure(job: Job[MeasureConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write metrics.json (medians) and details.json (every repeat, spread, threads, hardware) for `model`."""
    config = job.config
    _check_length(inputs["model"], config)
    request = Request(
        folder=str(inputs["model"].resolve()),
        dtype=job.dtype,
        device=job.device,
        trust_remote_code=job.trust_remote_code,
        **{key: getattr(config, key) for key in type(config).model_fields},
    )
    answer = ask_child(request)
    metrics, details = summary(config, answer)
    details["hardware"] = fingerprint()
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")
    (workdir / "details.json").write_text(json.dumps(details, sort_keys=True, indent=1) + "\n")
    progress(1, 1, "models measured")


def ask_child(request: Request) -> Answer:
    """The answer of a fresh measuring process; one that fails raises StageFailed with its last words."""
    with TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", "resprout.tasks.measure.worker", str(asked), str(answered)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode != 0:
            reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
            raise StageFailed(
                f"the measuring process stopped ({reason}); if it ran out of memory, lower "
                "measure.prefill_tokens or measure.batch_size, or set measure: null"
            )
        return Answer(**json.loads(answered.read_text()))


def summary(config: MeasureConfig, answer: Answer) -> tuple[dict[str, float], dict[str, object]]:
    """Metrics, whose names say the lengths they hold for, and details.

    Speeds are tokens of the whole batch a second at the median time; memory is in MB of 10^6 bytes; spread is
    (slowest - fastest) / median.
    """
    prefill, decode = f"prefill{config.prefill_tokens}", f"decode{config.decode_tokens}"
    if config.batch_size > 1:
        prefill, decode = f"{prefill}_batch{config.batch_size}", f"{decode}_batch{config.batch_size}"
    runs = {
        prefill: (config.prefill_tokens, answer.prefill_seconds),
        decode: (config.decode_tokens, answer.decode_seconds),
    }
    metrics = {
        f"{name}_tokens_per_s": config.batch_size * tokens / statistics.median(seconds)
        for name, (tokens, seconds) in runs.items()
    }
    metrics["peak_memory_mb"] = answer.peak_memory_bytes / 1e6
    metrics["load_seconds"] = answer.load_seconds
    details: dict[str, object] = {
        name: {
            "tokens": config.batch_size * tokens,
            "seconds": seconds,
            "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        }
        for name, (tokens, seconds) in runs.items()
    }
    details["threads"] = answer.threads
    details["warmup"] = config.warmup
    return metrics, details


def _check_length(folder: Path, config: MeasureConfig) -> None:
    longest = shape_of(folder).max_positions
    wanted = config.prefill_tokens + config.decode_tokens
    if longest and wanted > longest:
        raise BadInput(
            f"measure.prefill_tokens + measure.decode_tokens is {wanted}, but the model takes {longest} "
            f"positions; give prefill_tokens of at most {longest - config.decode_tokens}"
        )
