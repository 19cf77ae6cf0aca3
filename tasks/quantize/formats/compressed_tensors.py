"""compressed-tensors: safetensors in few bits for transformers and vLLM, rounded to nearest or by GPTQ.

GPTQ: Frantar et al., ICLR 2023, arXiv 2210.17323. Embeddings and head stay whole; no zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resprout.configs.errors import BadInput
from resprout.configs.presets import Layout
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.compressed_tensors.library import require_compressed_tensors, scheme_of
from resprout.tasks.compressed_tensors.types import GROUPS, grouped, tensors_type
from resprout.tasks.core.job import Progress
from resprout.tasks.models.shape import Shape
from resprout.tasks.packed.checkpoint import check_packable, save_packed, weight_bytes
from resprout.tasks.quantize.format import Need

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CompressedTensors:
    """A safetensors folder in few bits for transformers and vLLM, in a type (compressed-tensors:W4A16)."""

    types: ClassVar[tuple[str, ...]] = (
        "W8A16",
        "W8A8",
        "FP8",
        "W4A16-G32",
        "W4A16-G64",
        "W4A16-G128",
        "W4A16",
    )
    layerwise: ClassVar[bool] = False

    def __init__(self, kind: str) -> None:
        self.kind = tensors_type(kind)

    def require(self) -> None:
        """Raise BadInput where the library is not installed."""
        require_compressed_tensors()

    def needs(self, config: QuantizeConfig) -> Need:
        """Calibration samples where weights are rounded by GPTQ."""
        return "calibration" if config.rounding == "gptq" else ""

    def layouts(self, shape: Shape) -> tuple[Layout, ...]:
        """One width for all layers, which is all that stock classes know."""
        return ("uniform",)

    def smaller(self) -> str | None:
        """W4A16 with the smallest groups, which fit most widths, below eight bits; nothing below four."""
        return f"compressed-tensors:{grouped(GROUPS[-1])}" if self.kind.bits > 4 else None

    def check(self, shape: Shape) -> None:
        """Raise BadInput where stock transformers cannot read such a model, or groups do not fill a row."""
        name = f"compressed-tensors:{self.kind.name}"
        check_packable(name, shape)
        rows = {name: inputs for layer in range(shape.layers) for name, inputs in shape.matrices(layer)}
        group = self.kind.group or 1
        unfilled = next((found for found in rows if rows[found] % group), None)
        if unfilled is not None:
            fitting = [grouped(one) for one in GROUPS if not any(width % one for width in rows.values())]
            raise BadInput(
                f"{name} gives every {group} weights of a row a scale, which rows of {rows[unfilled]} "
                f"({unfilled}) do not fill; give {' or '.join([*fitting, 'W8A16'])}"
            )

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

        By GPTQ where samples are `known`. The model is packed in place, matrix by matrix. What stays whole of
        a float32 model, and its scales, are stored in bfloat16.
        """
        from compressed_tensors.compressors import ModelCompressor, compress_module
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
        from torch import bfloat16, float32, nn

        from resprout.tasks.models.shape import count
        from resprout.tasks.quantize.grid import Grid
        from resprout.tasks.quantize.rounding import round_layers

        scheme, params = scheme_of(self.kind), count(model).params
        stored = bfloat16 if model.dtype == float32 else model.dtype
        samples = known["input_ids"].long() if known else None
        scales = round_layers(model, Grid(self.kind, stored), samples, progress)
        model.to(stored)
        modules = {name: model.get_submodule(name) for name in scales}
        packed = sum(module.weight.numel() for module in modules.values())
        whole = [
            name
            for name, module in model.named_modules()
            if name not in modules and isinstance(module, nn.Linear)
        ]
        config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=whole)
        apply_quantization_config(model, config, show_progress=False)
        packer = ModelCompressor.from_pretrained_model(model)
        # The library takes the names that the file has; transformers asks for those of its modules.
        packer.quantization_config.ignore = sorted({*packer.quantization_config.ignore, *whole})
        for name, module in modules.items():
            module.weight_scale.data = scales.pop(name)
            # A quotient in bfloat16 has fewer bits than tell 127 codes apart.
            module.weight.data = module.weight.data.float()
            compress_module(module)
        packer.compress_model(model, skip_compressed=True)
        save_packed(model, folder, source, about)
        packer.update_config(str(folder))
        return {"bytes": weight_bytes(folder), "quantized_share": packed / params}
