"""The export formats that a run config may name; imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resprout.tasks.registry import Registry

if TYPE_CHECKING:
    from resprout.tasks.export.contracts import Format

FORMATS: Registry[type[Format]] = Registry("export format")
FORMATS.add(
    "hf",
    "resprout.tasks.export.formats.hf:HuggingFace",
    "safetensors folder for stock transformers, no code of ours",
)
FORMATS.add(
    "hf_layouts",
    "resprout.tasks.export.formats.hf_layouts:HuggingFaceLayouts",
    "the same with a width for each layer, for transformers with resprout's classes (register_layouts)",
)
