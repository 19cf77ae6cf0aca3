"""A model in which hidden channels carry nothing, by the stock names of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def without_channels(model: Any, kept: Sequence[int] | None) -> None:
    """Nothing writes to the channels that go: they are zero from the embeddings to the last norm."""
    if kept is None:
        return
    hidden = model.config.hidden_size
    gone = [channel for channel in range(hidden) if channel not in kept]
    model.get_input_embeddings().weight[:, gone] = 0
    for name, tensor in model.named_parameters():
        if name.endswith("experts.down_proj"):
            tensor[:, gone] = 0
        elif name.rpartition(".")[0].endswith(("o_proj", "down_proj")):
            tensor[gone] = 0
    for name, module in model.named_modules():
        # One epsilon in the config serves all norms, those of queries and keys over head_dim as well.
        if name.endswith(("q_norm", "k_norm")):
            module.variance_epsilon *= hidden / len(kept)
