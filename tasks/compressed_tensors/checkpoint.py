"""A compressed-tensors checkpoint in a model folder: whether it is one, its bytes, its weights unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.tasks.compressed_tensors.library import load_library
from resprout.tasks.models.shape import read_config

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


def load_served(folder: Path, dtype: str, device: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in a folder as `load_model` gives it; of a checkpoint what transformers computes of it."""
    from resprout.tasks.models.load import load_model

    packed = is_packed(read_config(folder))
    if packed:
        load_library()
    model = load_model(folder, dtype, device, trust_remote_code)
    if packed:
        _unpack(model)
        model.requires_grad_(False)
    return model


def _unpack(model: PreTrainedModel) -> None:
    """Unpack the weights of a model that transformers has loaded, in place, to the dtype of their scales.

    It would do so itself at the first call of the whole model; its decoder or its head can be called alone
    only afterwards. What a type rounds of the inputs, the modules round from then on. The model's config is
    then that of whole weights.
    """
    load_library()
    loaded: Any = model
    loaded.hf_quantizer.compressor.decompress_model(model)
    del loaded.config.quantization_config
