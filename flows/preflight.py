"""What can be known before any work: the device, and whether disk and memory are enough for the model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from resprout.configs.errors import BadInput
from resprout.configs.schema import ModelConfig
from resprout.infra.identity import library_version
from resprout.tasks.models.size import BYTES, Shape

MODELS_ON_DISK = 5
"""Dense, pruned, recovered and exported, and one in the making."""
MODELS_IN_MEMORY = 2
"""Selection, distillation and divergence hold two models at once."""
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


@dataclass(frozen=True)
class Needs:
    """Bytes that a run takes at its peak, estimated from the number of parameters."""

    disk: int
    memory: int


def needs(params: int, dtype: str) -> Needs:
    """Estimate for a model of `params` parameters held in `dtype`."""
    size = params * BYTES[dtype]
    return Needs(MODELS_ON_DISK * size, MODELS_IN_MEMORY * size + WORKING_BYTES)


def check(model: ModelConfig, shape: Shape, home: Path, free: int) -> None:
    """BadInput where the `free` bytes of the home's disk, or the memory, cannot hold models of `shape`."""
    needed = needs(shape.params, model.dtype)
    if free < needed.disk:
        raise BadInput(
            f"the disk of {home} has {_gb(free)} GB free, and this run needs about {_gb(needed.disk)} GB; "
            "free space there or set RESPROUT_HOME to a larger disk"
        )
    total = psutil.virtual_memory().total
    if device(model.device) == "cpu" and total < needed.memory:
        raise BadInput(
            f"the machine has {_gb(total)} GB of memory, and this run needs about {_gb(needed.memory)} GB "
            f"for two copies of the model in {model.dtype}; use a smaller dtype or a larger machine"
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
