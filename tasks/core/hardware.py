"""Fingerprint of the hardware behind a timing: processor, cores, memory, GPUs; imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
