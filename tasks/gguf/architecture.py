"""What llama.cpp calls the architecture of a model; imports neither torch nor the gguf package."""

from __future__ import annotations

from resprout.configs.errors import BadInput
from resprout.tasks.models.shape import Shape

UNEVEN = "deci"
"""Nemotron NAS: computed as llama is, with widths for each layer, and layers without a sublayer."""


def holds_uneven(shape: Shape) -> bool:
    """Whether layers of different widths can be held for a model of this family."""
    return shape.family.gguf == "llama" and not shape.experts


def architecture_of(shape: Shape) -> str:
    """The architecture's name; BadInput where llama.cpp has none for the family or for such layers."""
    name = shape.family.gguf
    if name is None:
        raise BadInput(f"llama.cpp has no architecture for the family {shape.model_type}; export hf instead")
    if shape.stock:
        return name
    if not holds_uneven(shape) or shape.rotated:
        raise BadInput(
            "llama.cpp has layers of different widths for families that it computes as llama, not for "
            f"{shape.model_type}{' with rotated layers' if shape.rotated else ''}; prune with layout: "
            "uniform, or export hf_layouts instead"
        )
    return UNEVEN
