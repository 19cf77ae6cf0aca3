"""Fingerprint of the hardware behind a timing: processor, cores, memory, GPUs; imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import psutil

CGROUP = Path("/sys/fs/cgroup")


def fingerprint() -> dict[str, Any]:
    """The machine's processor, usable cores, memory in GB and GPU names; equal on equal machines.

    Host name, load and free memory are left out: a timing may be used again wherever the hardware is equal.
    """
    return {
        "machine": platform.machine(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "cores": _cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpus": _gpus("name"),
    }


def free_memory(device: str) -> int:
    """Bytes that new processes may take: of this machine or its container, on CUDA at most the GPU's.

    0 where the GPU does not say.
    """
    free = min([psutil.virtual_memory().available, *_container(CGROUP)])
    if not device.startswith("cuda"):
        return free
    # Which of several GPUs is meant, only torch knows.
    lines = _gpus("memory.free")
    mib = [int(line.split()[0]) for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    return min([free, *(1024**2 * one for one in mib)]) if mib and len(mib) == len(lines) else 0


def devices(device: str) -> int:
    """GPUs of this machine that a process sees, or the processor cores that it may use."""
    return len(memory_by_device(device)) - 1 if device.startswith("cuda") else _cores()


def memory_by_device(device: str) -> dict[int | Literal["cpu"], int]:
    """Free bytes of memory under cpu and, where `device` is CUDA, of each GPU under torch's number for it."""
    found: dict[int | Literal["cpu"], int] = {"cpu": free_memory("cpu")}
    if not device.startswith("cuda"):
        return found
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for gpu in range(torch.cuda.device_count()):
            cached = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
            found[gpu] = torch.cuda.mem_get_info(gpu)[0] + cached
        return found
    mib = [int(line.split()[0]) for line in _gpus("memory.free") if line.split()[:1] and line[0].isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if all(one.strip().isdigit() and int(one) < len(mib) for one in visible):
        mib = [mib[int(one)] for one in visible]
    return found | {gpu: 1024**2 * one for gpu, one in enumerate(mib)}


def total_memory(device: str) -> int:
    """Bytes of the machine's memory, on CUDA of its largest GPU; 0 where that does not say."""
    if not device.startswith("cuda"):
        return int(psutil.virtual_memory().total)
    lines = _gpus("memory.total")
    return max((1024**2 * int(line.split()[0]) for line in lines if line[:1].isdigit()), default=0)


def _container(cgroup: Path) -> list[int]:
    """Bytes left below the container's limit, cached files counted as free; empty without a limit."""
    limit = cgroup / "memory.max"
    if not limit.is_file() or not limit.read_text().strip().isdigit():
        return []
    used = int((cgroup / "memory.current").read_text())
    fields = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return [int(limit.read_text()) - used + int(fields.get("inactive_file", 0))]


def _cpu(cpuinfo: Path) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    # A container or taskset may allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(query: str) -> list[str]:
    """A property of each GPU, as nvidia-smi calls it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
