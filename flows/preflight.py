"""Checks before any work: the device, a dtype that it computes slowly, and enough disk and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from resprout.configs.errors import BadInput
from resprout.configs.schema import RunConfig
from resprout.infra.identity import library_version
from resprout.tasks.models.shape import BYTES, Shape

MODELS_IN_MEMORY = 2
"""Selection, distillation and divergence hold two models at once."""
FULL_TRAINING = 16
"""Bytes a parameter where all are trained: float32 masters, gradients and AdamW's two moments."""
CPUINFO = Path("/proc/cpuinfo")
WIDE = ("avx512bw", "amx_bf16", "avx_ne_convert")
"""Flags of x86 processors on which torch multiplies matrices of bfloat16 natively, or nearly as fast."""
WORKING_BYTES = 1_000_000_000
"""Interpreter, libraries, activations and logits of a small batch."""


def device(asked: str) -> str:
    """The torch device for `asked`, without importing torch: auto takes CUDA where torch and machine can."""
    if asked != "auto":
        return asked
    has_cuda_build = "+cpu" not in library_version("torch")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return "cuda" if has_cuda_build and has_gpu and visible not in ("", "-1") else "cpu"


def check_device(asked: str, all_cached: Callable[[], bool]) -> None:
    """BadInput where CUDA is asked for by name and is not there, unless the store has all stages."""
    if device("auto") != "cuda" == asked and not all_cached():
        raise BadInput(
            "model.device is cuda, which this machine or its torch does not have; give cpu, or auto for "
            "whichever is there"
        )


def slow_dtype(config: RunConfig) -> list[str]:
    """A sentence where the dtype is of 16 bits and the processor has instructions for 32 only."""
    model = config.model
    if model.dtype == "float32" or not slow_in_16_bits(model.device):
        return []
    return [
        f"model.dtype is {model.dtype}, for which this processor has no instructions (AVX-512 or AMX): it "
        "computes several times slower than in float32; give model.dtype: float32, in twice the memory"
    ]


def slow_in_16_bits(asked: str) -> bool:
    """Whether the device that is asked for is a processor with instructions for 32 bits only."""
    if device(asked) != "cpu" or not CPUINFO.exists():
        return False
    flags = next((line.split() for line in CPUINFO.read_text().splitlines() if line.startswith("flags")), [])
    return bool(flags) and not any(flag.startswith(WIDE) for flag in flags)


@dataclass(frozen=True)
class Needs:
    """Bytes that a run takes at its peak, estimated from the number of parameters."""

    disk: int
    memory: int


def needs(config: RunConfig, shape: Shape, models: int) -> Needs:
    """Estimate for a run that writes `models` models, each with at most the parameters of `shape`."""
    size, recover = shape.params * BYTES[config.model.dtype], config.recover
    memory = two_models(shape, config.model.dtype)
    if recover is not None and recover.method == "full":
        training = FULL_TRAINING * shape.params + size * (recover.distill_weight > 0)
        memory = max(memory, training + WORKING_BYTES)
    # The one in the making is there twice for a moment.
    disk = (models + 1) * size if models else 0
    return Needs(disk, memory)


def two_models(shape: Shape, dtype: str) -> int:
    """Bytes of memory with two models in this dtype."""
    return MODELS_IN_MEMORY * shape.params * BYTES[dtype] + WORKING_BYTES


def check_room(
    config: RunConfig, shape: Shape, home: Path, free: int, models: int, to_make: Callable[[], Sequence[bool]]
) -> None:
    """BadInput where the `free` bytes of the home's disk, or the memory, cannot hold the run's models.

    `models` are written by a whole run. `to_make` looks into the store: for each step that is still to run,
    whether it writes a model. It is asked only where the whole run would not fit: what is in the store needs
    no room, and a run that finds everything there needs nothing.
    """
    needed = needs(config, shape, models)
    total = psutil.virtual_memory().total
    too_little_memory = device(config.model.device) == "cpu" and total < needed.memory
    if free >= needed.disk and not too_little_memory:
        return
    writes = to_make()
    if not writes:
        return
    disk = needs(config, shape, sum(writes)).disk
    if free < disk:
        raise BadInput(
            f"the disk of {home} has {_gb(free)} GB free, and this run needs about {_gb(disk)} GB for the "
            "models it will make; free space there or set RESPROUT_HOME to a larger disk"
        )
    if too_little_memory:
        full = config.recover is not None and config.recover.method == "full"
        what = (
            "to train all of its weights" if full else f"for two copies of the model in {config.model.dtype}"
        )
        remedy = "recover.method: lora" if full else "a smaller dtype"
        raise BadInput(
            f"the machine has {_gb(total)} GB of memory, and this run needs about {_gb(needed.memory)} GB "
            f"{what}; use {remedy} or a larger machine"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
