"""Models with layers of their own widths through AutoModelForCausalLM of transformers."""

from __future__ import annotations

from typing import Any

from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.layouts import cut_class


def register_layouts() -> None:
    """Let `AutoModelForCausalLM.from_pretrained` load folders with `resprout_layout`, others as before.

    Call it once in a program that loads models by their folder (lm-eval, say). The class of each supported
    family is replaced by one that differs from it only where config.json has a layout; no code from the
    folder runs.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    mapping: Any = AutoModelForCausalLM._model_mapping
    for name in sorted(FAMILIES):
        config: Any = CONFIG_MAPPING[name]
        AutoModelForCausalLM.register(config, cut_class(mapping[config]), exist_ok=True)
