"""HF with layers of their own widths: a safetensors folder that transformers loads by resprout's classes."""

from __future__ import annotations

from typing import ClassVar

from resprout.tasks.export.formats.hf import HuggingFace


class HuggingFaceLayouts(HuggingFace):
    """As `hf`, for models whose widths stock classes cannot state; no code lies in the folder.

    Who loads it calls `resprout.tasks.models.auto.register_layouts()` first, and so does the check.
    """

    own_classes: ClassVar[bool] = True
