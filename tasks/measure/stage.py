"""Stage measure: speed and memory of the models of a run, each in a process of its own, timed together.

A machine's speed changes while it works, so a model is never compared with what another was at another time:
all are measured again where one of them is, in rounds in which each has its turn. A measurement is no claim
of equal bytes: the hardware's fingerprint is part of its key, and its content holds times.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import Lengths, MeasureConfig
from resprout.tasks.core.hardware import fingerprint, free_memory
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, Volume, stage
from resprout.tasks.measure.processes import ModelTimes, in_turn, together
from resprout.tasks.measure.ratio import coverage, ratio_of
from resprout.tasks.measure.worker import MeasureRequest
from resprout.tasks.models.shape import BYTES, Shape, read_config, shape_of
from resprout.tasks.packed.checkpoint import KEY as PACKED
from resprout.tasks.quantize.names import DENSE, base_of

PROCESS_BYTES = 1_000_000_000
"""Of a measuring process beside weights and KV cache: interpreter, libraries, activations."""


def settings(config: MeasureConfig) -> dict[str, Any]:
    """The section, with the threads that the environment sets where the section leaves them to torch."""
    threads = config.threads or os.environ.get("OMP_NUM_THREADS") or "default"
    return {**config.key_data(), "threads": str(threads)}


def lengths(config: MeasureConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    return {"measure.prefill_tokens + decode_tokens": max(one.positions for one in config.points)}


def tokens(config: Mapping[str, Any], volume: Volume) -> float:
    """Tokens that all models read and write in all rounds."""
    points = MeasureConfig.model_validate({**config, "threads": None}).points
    return float(volume.inputs * config["repeats"] * sum(one.batch_size * one.positions for one in points))


@stage(
    "measure",
    kind="measurement",
    section="measure",
    reads={"models": Reads("model", group=True)},
    gives="speeds",
    reported=True,
    libraries=("torch", "transformers"),
    hardware=True,
    starts=True,
    tokens=tokens,
    settings=settings,
    lengths=lengths,
)
def measure(job: Job[MeasureConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write metrics.json (<model>.<metric>) and details.json (every round, spread, threads, hardware).

    Inputs: `dense`, and by their names the models that are compared with it. Where memory does not hold all
    processes at once, they run one after another; details.json says which in `order`.
    """
    config = job.config
    # The order of the rounds is a matter of the names alone, as the key is.
    names = sorted(inputs, key=lambda name: (name != DENSE, name))
    # Packed weights have the widths of whole ones, and transformers holds them unpacked at the most.
    shapes = {name: shape_of({**read_config(inputs[name]), PACKED: None}) for name in names}
    for shape in shapes.values():
        _check_length(shape, config)
    requests = {
        name: MeasureRequest(
            folder=str(inputs[name].resolve()),
            dtype=job.dtype,
            device=job.device,
            trust_remote_code=job.trust_remote_code,
            points=config.points,
            warmup=config.warmup,
            threads=config.threads,
            max_memory=job.max_memory,
        )
        for name in names
    }
    needed = sum(_bytes(shape, config, job.dtype) for shape in shapes.values())
    fit = needed <= free_memory(job.device)
    answers = (together if fit else in_turn)(requests, config.repeats, progress)
    metrics, details = summary(config, answers)
    details |= {"order": "together" if fit else "in turn", "hardware": fingerprint()}
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")
    (workdir / "details.json").write_text(json.dumps(details, sort_keys=True, indent=1) + "\n")


def run_names(config: MeasureConfig, point: Lengths | None = None) -> tuple[str, str]:
    """Names of prefill and decoding with their lengths, by default the section's own.

    The metric of each ends in _tokens_per_s. Behind another prompt than the section's, decoding names it too.
    """
    prefill, decode, sequences = point or config.points[0]
    after = f"_after{prefill}" if prefill != config.prefill_tokens else ""
    batch = f"_batch{sequences}" if sequences > 1 else ""
    return f"prefill{prefill}{batch}", f"decode{decode}{after}{batch}"


def summary(
    config: MeasureConfig, answers: Mapping[str, ModelTimes]
) -> tuple[dict[str, float], dict[str, object]]:
    """Metrics, whose names say the model and the lengths they hold for, and details.

    Speeds are tokens of the whole batch a second at the median time, and their ratio to `base_of` with an
    interval; memory is in MB of 10^6 bytes; spread is (slowest - fastest) / median.
    """
    tokens, seconds = dict[str, int](), {name: dict[str, list[float]]() for name in answers}
    for number, point in enumerate(config.points):
        for part, run in enumerate(run_names(config, point)):
            if run not in tokens:
                # The same prompt before another number of tokens is no other prompt.
                tokens[run] = point.batch_size * point[part]
                for name, answer in answers.items():
                    seconds[name][run] = [taken[number][part] for taken in answer.seconds]
    metrics, models = dict[str, float](), dict[str, dict[str, object]]()
    for name, answer in answers.items():
        models[name] = {}
        for run, taken in seconds[name].items():
            speed = f"{name}.{run}_tokens_per_s"
            metrics[speed] = tokens[run] / statistics.median(taken)
            if (base := base_of(name, answers)) is not None:
                metrics |= ratio_of(seconds[base][run], taken).metrics(speed)
            models[name][run] = {
                "tokens": tokens[run],
                "seconds": taken,
                "spread": (max(taken) - min(taken)) / statistics.median(taken),
            }
        metrics[f"{name}.peak_memory_mb"] = answer.peak_memory_bytes / 1e6
        metrics[f"{name}.load_seconds"] = answer.load_seconds
    details: dict[str, object] = {
        "models": models,
        "rounds": config.repeats,
        "coverage": coverage(config.repeats),
        "start_seconds": {name: answer.start_seconds for name, answer in answers.items()},
        "threads": answers[DENSE].threads,
        "warmup": config.warmup,
    }
    return metrics, details


def _bytes(shape: Shape, config: MeasureConfig, dtype: str) -> int:
    """About what a measuring process holds at its peak."""
    positions = max(one.batch_size * one.positions for one in config.points)
    cached = 2 * sum(shape.kv_heads) * shape.head_dim * positions
    return PROCESS_BYTES + (shape.params + cached) * BYTES[dtype]


def _check_length(shape: Shape, config: MeasureConfig) -> None:
    longest = shape.max_positions
    point = max(config.points, key=lambda one: one.positions)
    if longest and point.positions > longest:
        raise BadInput(
            f"measure.prefill_tokens + measure.decode_tokens is {point.positions}, but the model takes "
            f"{longest} positions; give prefill_tokens of at most {longest - point.decode_tokens}"
        )
