"""The model families that resprout prunes, one a module; README.md of tasks/models says how to add one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.models.families.family import Family

LAYOUT_KEY = "resprout_layout"
"""Key of config.json that holds each layer's own widths where the layers of a model differ."""


def _found() -> Mapping[str, Family]:
    families: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        family = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILY", None)
        if family is None:
            continue
        if family.model_type in families:
            raise ValueError(f"the family '{family.model_type}' is there twice")
        families[family.model_type] = family
    return families


FAMILIES: Mapping[str, Family] = _found()


def check_family(config_json: Mapping[str, Any]) -> Family:
    """The family of a model's config.json; an unsupported one, or quantised weights, raise BadInput."""
    model_type = str(config_json.get("model_type"))
    if model_type not in FAMILIES:
        raise BadInput(
            f"model_type '{model_type}' is not supported; supported are {', '.join(sorted(FAMILIES))}; "
            "tasks/models/README.md shows how to add a decoder, by one file in tasks/models/families"
        )
    quantised = config_json.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        raise BadInput(
            f"config.json has a quantization_config (quant_method {method}), and quantised weights cannot be "
            "pruned; give the unquantised model, in bfloat16, float16 or float32"
        )
    return FAMILIES[model_type]
