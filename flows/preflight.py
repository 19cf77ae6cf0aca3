"""Checks before any work: the device, a dtype that it computes slowly, and enough disk and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig, RunConfig
from resprout.infra.identity import library_version
from resprout.tasks.core.hardware import devices, total_memory
from resprout.tasks.models.placement import Placement, least_bytes, place, room
from resprout.tasks.models.shape import BYTES, Shape
from resprout.tasks.prune.compatibility import need_the_whole_model
from resprout.tasks.prune.rounds import schedule_of
from resprout.tasks.prune.target import request
from resprout.tasks.quantize.format import format_of
from resprout.tasks.recover.stage import reads_dense

MODELS_IN_MEMORY = 2
"""Selection, distillation and divergence hold two models at once."""
WHOLE = {"full", "distill"}
"""Recovery methods that train all weights."""
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


def gpus(config: RunConfig, where: str) -> int:
    """GPUs that recovery shares its steps out over; 0 on a CPU, and where layers are spread over all GPUs."""
    return _counted(where) if where.startswith("cuda") and config.model.spread is None else 0


@cache
def _counted(where: str) -> int:
    return devices(where)


def check_processes(config: RunConfig, all_cached: Callable[[], bool]) -> None:
    """BadInput for more processes than devices, unless the store has all stages, and for shares in rounds."""
    recover, where = config.recover, device(config.model.device)
    if recover is None or recover.method == "reconstruct":
        return
    wanted = recover.on_machine(gpus(config, where)).devices
    if wanted.shares and len(schedule_of(config.prune)) > 1:
        raise BadInput(
            f"recover.devices.sharding is fsdp, but prune.schedule {config.prune.schedule} trains between "
            "rounds, in which masked weights stay zero; give ddp"
        )
    if wanted.processes not in (1, "auto") and config.model.spread is not None and reads_dense(recover):
        raise BadInput(
            f"recover.devices.processes is {wanted.processes} and model.device_map auto, so that each "
            "would spread a teacher over all GPUs; give recover.distill.teacher: disk, or processes: 1"
        )
    there = devices(where)
    if wanted.processes not in (1, "auto") and int(wanted.processes) > there and not all_cached():
        what = "GPUs" if where.startswith("cuda") else "processor cores"
        raise BadInput(
            f"recover.devices.processes is {wanted.processes}, but this machine has {there} {what}; give at "
            "most so many, or auto"
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
    """Estimate for a run that writes `models` models, each with at most the parameters of `shape`.

    With device_map: auto the memory is the least on one device: what it cannot do without of two models.
    """
    dtype, recover = config.model.dtype, config.recover
    size, memory = shape.params * BYTES[dtype], two_models(shape, dtype)
    other = size
    if config.model.spread is not None:
        other = least_bytes(shape, dtype)
        # Recovery trains a model that lies on one device.
        trained = other if recover is None else _pruned_bytes(config, shape)
        memory = trained + other + WORKING_BYTES
    if recover is not None:
        memory = max(memory, _training_bytes(config, recover, shape, other))
    # The one in the making is there twice for a moment.
    disk = (models + 1) * size if models else 0
    return Needs(disk, memory)


def _training_bytes(config: RunConfig, recover: RecoverConfig, shape: Shape, other: int) -> int:
    """Bytes that training takes: of all its processes on a CPU, else of one, which has a GPU of its own.

    With shares of the weights each still loads all of them, in memory, before it keeps its own. A teacher of
    `other` bytes lies beside each.
    """
    where = device(config.model.device)
    wanted = recover.on_machine(gpus(config, where)).devices
    count = 1 if wanted.processes == "auto" else wanted.processes
    whole = bool(WHOLE & set(recover.methods))
    if count == 1 and not whole:
        return 0
    held = (FULL_TRAINING if whole else BYTES[config.model.dtype]) * shape.params
    if wanted.shares:
        loaded = BYTES["float32" if whole else config.model.dtype] * shape.params
        held = max(held // count, loaded if where == "cpu" else 0)
    teacher = other * (recover.distills)
    return (held + teacher + WORKING_BYTES) * (count if where == "cpu" else 1)


def _pruned_bytes(config: RunConfig, shape: Shape) -> int:
    """Bytes of the pruned model, at the most those of the dense one."""
    dtype = config.model.dtype
    return BYTES[dtype] * min(shape.params, request(shape, config.prune, dtype).limit)


def two_models(shape: Shape, dtype: str) -> int:
    """Bytes of memory with two models in this dtype."""
    return MODELS_IN_MEMORY * shape.params * BYTES[dtype] + WORKING_BYTES


def spread_over(config: RunConfig, shape: Shape) -> Placement | None:
    """Where the dense model's layers lie beside another model, by what is free now; None: on one device."""
    limits = config.model.spread
    if limits is None:
        return None
    found = room(device(config.model.device), limits)
    if unknown := sorted(set(limits) - set(map(str, found))):
        raise BadInput(
            f"model.max_memory names device {unknown[0]}, which is not here; give some of "
            f"{', '.join(sorted(map(str, found)))}"
        )
    return place(shape, config.model.dtype, {one: free // MODELS_IN_MEMORY for one, free in found.items()})


def needs_whole(config: RunConfig) -> list[str]:
    """Parts of the run that need all weights of the dense model in memory at once, by their keys."""
    formats = config.quantize.formats if config.quantize is not None else ()
    rounds = len(schedule_of(config.prune)) > 1
    return [
        *(f"prune: {who}" for who in need_the_whole_model(config.prune)),
        *([f"prune.schedule {config.prune.schedule}"] if rounds else []),
        *(f"quantize.formats: {name}" for name in formats if not format_of(name).layerwise),
    ]


def check_room(
    config: RunConfig, shape: Shape, home: Path, free: int, models: int, to_make: Callable[[], Sequence[bool]]
) -> None:
    """BadInput where the `free` bytes of the home's disk, or the memory, cannot hold the run's models.

    `models` are written by a whole run. `to_make` looks into the store: for each step that is still to run,
    whether it writes a model. It is asked only where the whole run would not fit: what is in the store needs
    no room, and a run that finds everything there needs nothing.
    """
    needed = needs(config, shape, models)
    unfit = _unfit(config, shape, needed.memory)
    if free >= needed.disk and not unfit:
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
    if unfit:
        raise BadInput(unfit)


def _unfit(config: RunConfig, shape: Shape, needed: int) -> str:
    """Why the memory cannot hold the run's models, and what to do; empty where it can, or does not say."""
    where, dtype = device(config.model.device), config.model.dtype
    placement = spread_over(config, shape)
    if placement is not None and placement.offloads and (whole := needs_whole(config)):
        lie = ", ".join(f"{_gb(size)} GB on {name}" for name, size in placement.held.items())
        return (
            f"{whole[0]} needs all weights in memory, but the model of {_gb(shape.sizes(dtype).bytes)} GB in "
            f"{dtype} would lie as {lie}; give one that works layer by layer, a smaller model.dtype or a "
            "larger machine"
        )
    total = total_memory(where)
    if not total or total >= needed:
        return ""
    what, remedy = f"for two copies of the model in {dtype}", "model.device_map: auto, a smaller dtype"
    if config.recover is not None and bool(WHOLE & set(config.recover.methods)):
        what, remedy = "to train all of its weights", "recover.method: lora"
        if config.recover.devices.processes not in (1, "auto"):
            what += f" in {config.recover.devices.processes} processes"
            remedy += ", fewer recover.devices.processes"
    elif placement is not None and config.recover is not None:
        what = "for the pruned model, which recovery trains on one device, beside layers of the dense one"
        remedy = "a smaller dtype or target, leave select and recover out,"
    elif placement is not None:
        what = "for what must lie there of two models: embeddings, head and the largest layer"
        remedy = "a smaller dtype"
    whose = "the machine" if where == "cpu" else "its largest GPU"
    return (
        f"{whose} has {_gb(total)} GB of memory, and this run needs about {_gb(needed)} GB {what}; use "
        f"{remedy} or a larger machine"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
