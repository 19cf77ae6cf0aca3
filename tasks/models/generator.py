"""Draws that depend on a seed alone, and leave torch's global generators as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_generator(seed: int, device: str) -> Iterator[None]:
    """Torch's global draws from `seed` inside, as they were before outside."""
    devices = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
