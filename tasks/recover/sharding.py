"""Shares of parameters: each process holds a part of every tensor, by torch's fully_shard (FSDP2).

A layer's tensors are gathered when the layer computes and let go of behind it. fully_shard is called here and
not by accelerate, which does so on GPUs alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.recover.learner import Learner


def sharded(learner: Learner, device: torch.device) -> Any:
    """The learner, of whose parameters this process from now on holds its share on `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in anatomy(learner.base).layers:
        fully_shard(layer.module, mesh=mesh)
    # What lies outside of layers: embeddings, the last norm, the head.
    return fully_shard(learner, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the shares of all processes, which call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the parameter's device, shared out as the parameter is."""
    moved = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or isinstance(moved, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements)


@torch.no_grad()
def gather(learner: Learner, keep: bool) -> None:
    """Give modules whole parameters, in memory, for good; without `keep` none that hold anything."""
    from torch.distributed.fsdp import FSDPModule

    for module in learner.modules():
        if isinstance(module, FSDPModule):
            # A pass without gradients leaves what lies outside of layers gathered.
            module.reshard()
    made: dict[int, nn.Parameter] = {}
    for module in learner.modules():
        own_parameters: dict[str, Any] = module._parameters
        for name, parameter in own_parameters.items():
            if not isinstance(parameter, DTensor):
                continue
            # A tensor of several modules stays one.
            if id(parameter) not in made:
                full = parameter.full_tensor()
                made[id(parameter)] = nn.Parameter(
                    full.to("cpu" if keep else "meta"), parameter.requires_grad
                )
            own_parameters[name] = made[id(parameter)]
