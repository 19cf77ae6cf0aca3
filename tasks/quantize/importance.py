"""How large each input channel of a model's matrices is on some text: what quantisers weigh errors by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 2048


@torch.inference_mode()
def mean_squares(model: PreTrainedModel, input_ids: Tensor) -> dict[str, Tensor]:
    """For each matrix that is a module's `weight`, by its name: the mean square of each input [inputs].

    This is what llama.cpp's importance matrix holds (tools/imatrix: the mean over tokens of each column's
    squared activations). Modules that several names share are there under the first.
    """
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}

    def watch(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].flatten(0, -2).float()
            total = rows.square().sum(0, dtype=torch.float64).cpu()
            sums[name] = sums[name] + total if name in sums else total
            seen[name] = seen.get(name, 0) + len(rows)

        return note

    matrices = {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
    }
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in matrices.items()]
    try:
        for batch in input_ids.split(max(1, BATCH_TOKENS // input_ids.shape[1])):
            model(batch.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {f"{name}.weight": (total / seen[name]).float() for name, total in sums.items()}
