"""A checkpoint of few bits in a model folder: by which library, its bytes, how it is loaded and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.tasks.compressed_tensors.library import load_library
from resprout.tasks.compressed_tensors.unpack import unpack
from resprout.tasks.models.placement import Placement
from resprout.tasks.models.shape import Shape, read_config
from resprout.tasks.torchao.library import require_torchao

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "quantization_config"
"""Key of config.json that says how weights are packed."""
LIBRARIES: Mapping[str, Callable[[], None]] = {
    "compressed-tensors": load_library,
    "torchao": require_torchao,
}
"""By its `quant_method` there, what makes a library ready before transformers loads with it."""
UNPACK: Mapping[str, Callable[[PreTrainedModel], None]] = {"compressed-tensors": unpack}
"""What gives a loaded model whole weights, where its decoder or head could else not be called alone."""


def packed_by(config: Mapping[str, Any]) -> str | None:
    """The library that packed the weights of a config.json; None where they are whole."""
    found = config.get(KEY)
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return method if method in LIBRARIES else None


def packed(folder: Path) -> str:
    """Who needs all weights of the model in a folder in memory: the library that unpacks them; else empty."""
    library = packed_by(read_config(folder))
    return "" if library is None else f"a checkpoint of {library}, which is unpacked as a whole,"


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights' files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load_served(
    folder: Path,
    dtype: str,
    device: str,
    trust_remote_code: bool = False,
    placement: Placement | None = None,
) -> PreTrainedModel:
    """The model in a folder as `load_model` gives it; of a checkpoint what transformers computes of it.

    The config of the loaded model is that of whole weights.
    """
    from resprout.tasks.models.load import load_model

    method = packed_by(read_config(folder))
    if method is not None:
        LIBRARIES[method]()
    model: Any = load_model(folder, dtype, device, trust_remote_code, placement)
    if method is not None:
        if method in UNPACK:
            UNPACK[method](model)
        del model.config.quantization_config
    return model


def save_packed(model: PreTrainedModel, folder: Path, tokenizer_from: Path, about: Mapping[str, str]) -> None:
    """Save a packed model as `save_model` does; its config.json says what it was made of."""
    from resprout.tasks.models.load import save_model

    stated: Any = model.config
    # The names of a GGUF file's metadata begin with whose they are.
    stated.resprout = {name.rpartition(".")[2]: value for name, value in sorted(about.items())}
    save_model(model, folder, tokenizer_from=tokenizer_from)


def check_packable(name: str, shape: Shape) -> None:
    """Raise BadInput where stock transformers cannot read such a model packed; `name` is the format's."""
    if shape.family.transposed:
        raise BadInput(
            f"{name} packs linear layers, and {shape.model_type} keeps its matrices the other way round "
            "(Conv1D); leave it out of quantize.formats"
        )
    if shape.experts:
        raise BadInput(
            f"{name} packs linear layers, and transformers holds the experts of a {shape.model_type} model "
            "in one tensor, which is no linear layer; leave it out of quantize.formats"
        )
    if not shape.stock:
        raise BadInput(
            f"the model's layers have different widths, which stock transformers cannot read from a {name} "
            "checkpoint; prune with layout: uniform"
        )
