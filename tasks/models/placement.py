"""Which device holds which layer of a model that may be larger than a device; imports no torch.

One device computes whatever lies in no GPU's memory: the first GPU, or the processor where there is none.
Embeddings, last norm and head lie there too, so that hidden states come back to where they began. Decoder
layers fill the devices in their order, GPUs first, then memory, then disk; none is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from resprout.tasks.core.hardware import memory_by_device
from resprout.tasks.models.shape import BYTES, Shape

Device = int | Literal["cpu", "disk"]
"""As accelerate calls them: GPUs by number."""
USED = 0.9
"""Share of free memory that weights may take; the rest is for activations."""


@dataclass(frozen=True)
class Placement:
    """The device of each decoder layer, and the `main` one, which computes what lies in no GPU's memory."""

    main: Device
    layers: tuple[Device, ...]
    held: Mapping[Device, int]
    """Bytes of weights by device."""

    @property
    def offloads(self) -> bool:
        """Whether layers are fetched each time they compute, from disk or from memory to a GPU."""
        return any(one == "disk" or (one == "cpu" and self.main != "cpu") for one in self.layers)


def room(device: str, max_memory: Mapping[str, int]) -> dict[Device, int]:
    """Bytes that weights may take by device of this machine: what is given, else a share of what is free."""
    found = {one: int(USED * free) for one, free in memory_by_device(device).items()}
    return {one: max_memory.get(str(one), free) for one, free in found.items()}


def place(shape: Shape, dtype: str, room: Mapping[Device, int]) -> Placement:
    """Fill the devices of `room`, bytes by device, with the layers; disk takes what is left."""
    layers = _layers(shape, dtype)
    found = _filled(shape, dtype, layers, room, 0)
    # A layer that is fetched needs room where it computes.
    return _filled(shape, dtype, layers, room, max(layers)) if found.offloads else found


def least_bytes(shape: Shape, dtype: str) -> int:
    """Bytes of weights that are on the main device at once, wherever the layers lie."""
    return _ends(shape, dtype) + max(_layers(shape, dtype))


def _filled(shape: Shape, dtype: str, layers: list[int], room: Mapping[Device, int], spare: int) -> Placement:
    devices = sorted(room, key=lambda one: (one == "cpu", one))
    main, ends = devices[0], _ends(shape, dtype)
    left, held = {**room, main: room[main] - ends - spare}, {main: ends}
    found: list[Device] = []
    for layer in layers:
        while devices and left[devices[0]] < layer:
            devices.pop(0)
        where: Device = devices[0] if devices else "disk"
        found.append(where)
        held[where] = held.get(where, 0) + layer
        left[where] = left.get(where, 0) - layer
    return Placement(main, tuple(found), held)


def _layers(shape: Shape, dtype: str) -> list[int]:
    return [BYTES[dtype] * shape.layer_params(shape.widths(index)) for index in range(shape.layers)]


def _ends(shape: Shape, dtype: str) -> int:
    return BYTES[dtype] * shape.params - sum(_layers(shape, dtype))
