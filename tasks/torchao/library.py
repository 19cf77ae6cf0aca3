"""The library of the extra `torchao`: in which version, and its types; imports none of it by itself."""

from __future__ import annotations

import difflib
import functools
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.core.extras import require_library

PACKAGE, VERSION = "torchao", "0.18.0"
TYPES = {
    "INT8": "Int8WeightOnlyConfig",
    "INT8-DYNAMIC": "Int8DynamicActivationInt8WeightConfig",
}
"""Its configs by types; INT8-DYNAMIC also rounds what a matrix is given, with a scale for each token."""


@functools.cache
def require_torchao() -> None:
    """Raise BadInput unless the extra `torchao` is installed in the version known here; imports nothing."""
    require_library("torchao checkpoints", f"the package {PACKAGE}", PACKAGE, PACKAGE, VERSION, "torchao")


def torchao_type(name: str) -> str:
    """The name of a type in upper case; an unknown one raises BadInput with the nearest."""
    found = name.upper()
    if found in TYPES:
        return found
    if found.startswith(("INT4", "UINT4")):
        raise BadInput(
            f"'{name}' is no type of torchao checkpoint here: torchao computes 4 bits by another package "
            "(mslk), which it does not install, or on CUDA; give compressed-tensors:W4A16 or gguf:Q4_K_M"
        )
    near = difflib.get_close_matches(found, TYPES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise BadInput(f"'{name}' is no type of torchao checkpoint; known are {', '.join(TYPES)}{hint}")


def config_of(kind: str) -> Any:
    """The library's config of a type: symmetric, a scale for each row of a matrix."""
    require_torchao()
    from torchao import quantization

    # Else it changes settings of torch.compile in this process.
    return getattr(quantization, TYPES[kind])(set_inductor_config=False)
