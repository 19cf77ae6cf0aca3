"""ONNX: a graph for ONNX Runtime with its weights beside it, in float32 or float16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resprout.configs.errors import BadInput
from resprout.configs.presets import Layout
from resprout.configs.schema import QuantizeConfig
from resprout.tasks.core.job import Progress
from resprout.tasks.models.shape import Shape
from resprout.tasks.onnx_runtime.library import FILE, WEIGHTS, require_onnx
from resprout.tasks.onnx_runtime.types import TYPES, onnx_type
from resprout.tasks.quantize.format import Need

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SLIDING = "sliding_attention"


class Onnx:
    """A graph for ONNX Runtime, weights whole or in half precision (onnx:F32, onnx:F16), cache in and out."""

    types: ClassVar[tuple[str, ...]] = ("F32", "F16")
    layerwise: ClassVar[bool] = False

    def __init__(self, kind: str) -> None:
        self.kind = onnx_type(kind)

    def require(self) -> None:
        """Raise BadInput where the packages that write and run the graph are not installed."""
        require_onnx()

    def needs(self, config: QuantizeConfig) -> Need:
        """Nothing: no weight is rounded to fewer bits than half precision has."""
        return ""

    def smaller(self) -> str | None:
        """Half precision below whole."""
        return "onnx:F16" if self.kind == "F32" else None

    def layouts(self, shape: Shape) -> tuple[Layout, ...]:
        """Both: a graph has what widths it has."""
        return ("uniform", "per_layer")

    def check(self, shape: Shape) -> None:
        """Raise BadInput for caches that a trace does not keep: of windows, and of layers without attention.

        The cut to a window is baked in, so that it is wrong behind it (huggingface/transformers 49542).
        """
        name = f"onnx:{self.kind}"
        window = shape.config.get("sliding_window")
        if window and SLIDING in (shape.config.get("layer_types") or (SLIDING,)):
            raise BadInput(
                f"quantize.formats holds {name}, but the model attends to windows of {window} tokens, which "
                "transformers' exporter to ONNX does not keep behind the first; leave it out"
            )
        if 0 in shape.kv_heads:
            raise BadInput(
                f"quantize.formats holds {name}, but layer {shape.kv_heads.index(0)} has no attention, so "
                "that transformers' exporter to ONNX finds no cache for it; leave it out"
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
        """Write the graph, with config and tokenizer; bytes of graph and weights."""
        import torch

        from resprout.tasks.models.shape import shape_of
        from resprout.tasks.onnx_runtime.graph import write_graph

        self.check(shape_of(model.config.to_dict()))
        write_graph(model, source, folder, getattr(torch, TYPES[self.kind]))
        return {"bytes": sum((folder / name).stat().st_size for name in (FILE, WEIGHTS))}
