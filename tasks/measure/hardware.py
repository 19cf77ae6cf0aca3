"""What a timing depends on beside the model: processor, cores, memory, accelerators; imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil


def fingerprint() -> dict[str, Any]:
    """The machine's processor, usable cores, memory in GB and GPU names; equal on equal machines.

    Host name, load and free memory are left out: a timing may be used again wherever the hardware is equal.
    """
    return {
        "machine": platform.machine(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "cores": _cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpus": _gpus(),
    }


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


def _gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
