"""A compressed-tensors checkpoint in a model folder: whether it is one, its bytes, its weights unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.tasks.compressed_tensors.library import load_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY, METHOD = "quantization_config", "compressed-tensors"
"""Key of config.json that says how weights are packed, and its `quant_method` here."""


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of weights that compressed-tensors packed."""
    found = config.get(KEY)
    return isinstance(found, Mapping) and found.get("quant_method") == METHOD


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights' files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def unpack(model: PreTrainedModel) -> None:
    """Unpack the weights of a model that transformers has loaded, in place, to the dtype of their scales.

    It would do so itself at the first call of the whole model; its decoder or its head can be called alone
    only afterwards. What a type rounds of the inputs, the modules round from then on. The model's config is
    then that of whole weights.
    """
    load_library()
    loaded: Any = model
    loaded.hf_quantizer.compressor.decompress_model(model)
    del loaded.config.quantization_config
