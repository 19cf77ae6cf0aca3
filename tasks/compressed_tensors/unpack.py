"""Whole weights of a checkpoint that transformers has loaded, before it is first called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resprout.tasks.compressed_tensors.library import load_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unpack(model: PreTrainedModel) -> None:
    """Unpack the weights of a model that transformers has loaded, in place, to the dtype of their scales.

    It would do so itself at the first call of the whole model; its decoder or its head can be called alone
    only afterwards. What a type rounds of the inputs, the modules round from then on.
    """
    load_library()
    loaded: Any = model
    loaded.hf_quantizer.compressor.decompress_model(model)
    model.requires_grad_(False)
