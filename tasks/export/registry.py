"""The export formats that a run config may name; imports none of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from resprout.tasks.core.methods import Registry

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
    declared={"own_classes": True},
)


def own_classes(formats: Iterable[str]) -> str | None:
    """How exports that stock transformers does not load are loaded, as a sentence; None: all are stock."""
    found = [name for name in formats if FORMATS.entry(name).declared.get("own_classes")]
    if not found:
        return None
    return (
        f"stock transformers does not load {' and '.join(found)}: call resprout.tasks.models.auto."
        "register_layouts() before from_pretrained, or prune with layout: uniform"
    )
