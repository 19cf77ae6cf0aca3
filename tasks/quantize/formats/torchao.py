"""torchao: safetensors in 8-bit integers for transformers, each weight to its nearest value.

Symmetric, with a scale for each row of a matrix; embeddings and head stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resprout.configs.presets import Layout
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.models.shape import Shape
from resprout.tasks.packed.checkpoint import check_packable, save_packed, weight_bytes
from resprout.tasks.quantize.format import Need
from resprout.tasks.torchao.library import config_of, require_torchao, torchao_type
from resprout.tasks.torchao.metadata import sort_metadata

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TorchAo:
    """A safetensors folder in 8-bit integers that transformers computes with torchao (torchao:INT8)."""

    types: ClassVar[tuple[str, ...]] = ("INT8", "INT8-DYNAMIC")
    layerwise: ClassVar[bool] = False

    def __init__(self, kind: str) -> None:
        self.kind = torchao_type(kind)

    def require(self) -> None:
        """Raise BadInput where the library is not installed."""
        require_torchao()

    def needs(self, config: QuantizeConfig) -> Need:
        """Nothing: weights are rounded to the nearest value."""
        return ""

    def layouts(self, shape: Shape) -> tuple[Layout, ...]:
        """One width for all layers, which is all that stock classes know."""
        return ("uniform",)

    def smaller(self) -> str | None:
        """Nothing: both types have eight bits."""
        return None

    def check(self, shape: Shape) -> None:
        """Raise BadInput where matrices are not linear layers, or stock classes do not know the widths."""
        check_packable(f"torchao:{self.kind}", shape)

    def check_source(self, shape: Shape, tokenizer: Mapping[str, Any] | None) -> None:
        """Nothing: settings and tokenizer are kept as they are."""

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: Path,
        folder: Path,
        known: Mapping[str, Tensor],
        about: Mapping[str, str],
        progress: Progress,
    ) -> Mapping[str, float]:
        """Write the checkpoint; bytes of its weights, and the share of parameters that are in few bits.

        The linear layers but the head are packed in place, as transformers does with a TorchAoConfig. A
        float32 model is stored in bfloat16 otherwise.
        """
        wanted = config_of(self.kind)
        from torch import bfloat16, float32, nn
        from torchao.quantization import quantize_
        from transformers import TorchAoConfig
        from transformers.quantizers import AutoHfQuantizer

        from resprout.tasks.models.shape import count

        params, head = count(model).params, model.get_output_embeddings()
        if model.dtype == float32:
            model.to(bfloat16)
        modules = {
            name: module.weight.numel()
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        quantize_(model, wanted, lambda module, name: name in modules)
        packed: Any = model
        packed.config.quantization_config = TorchAoConfig(wanted)
        packed.hf_quantizer = AutoHfQuantizer.from_config(
            packed.config.quantization_config, pre_quantized=False
        )
        save_packed(model, folder, source, about)
        for path in folder.glob("*.safetensors"):
            sort_metadata(path)
        return {"bytes": weight_bytes(folder), "quantized_share": sum(modules.values()) / params}
