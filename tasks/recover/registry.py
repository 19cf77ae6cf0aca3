"""Recovery methods by name: `(job, inputs, lessons, progress) -> Recovered`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry

if TYPE_CHECKING:
    from resprout.tasks.recover.lessons import Lessons, Recovered

METHODS: Registry[Callable[[Job[RecoverConfig], Mapping[str, Path], Lessons, Progress], Recovered]] = (
    Registry("recovery method")
)
METHODS.add(
    "lora",
    "resprout.tasks.recover.lora:train",
    "low-rank adapters on all linear layers of attention and FFN, merged back",
    "LoRA, arXiv 2106.09685",
)
METHODS.add(
    "full",
    "resprout.tasks.recover.full:train",
    "all weights, float32 while they are trained; 16 bytes a parameter",
    "Rethinking the Value of Network Pruning, arXiv 1810.05270",
)


def modules(config: Any) -> list[str]:
    """Modules of the method that a recover section selects."""
    return [METHODS.entry(config.method).module]
