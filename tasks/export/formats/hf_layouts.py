"""HF with layers of their own widths: a safetensors folder that transformers loads by resprout's classes."""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.export.formats.hf import HuggingFace


class HuggingFaceLayouts(HuggingFace):
    """The same with a width for each layer, for transformers with resprout's classes (register_layouts).

    For models whose widths stock classes cannot state; the folder holds no code.

    Who loads it calls `resprout.tasks.models.auto.register_layouts()` first, and so does the check.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = True
    note: ClassVar[str] = (
        "Stock classes know one width for all layers: call `resprout.tasks.models.auto.register_layouts()` "
        "before `AutoModelForCausalLM.from_pretrained`."
    )
    quantized: ClassVar[bool] = False
    adapters: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from resprout.tasks.models.auto import register_layouts",
        "register_layouts()",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained({folder})",
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )
