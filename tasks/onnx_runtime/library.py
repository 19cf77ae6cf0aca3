"""The packages of the extra `onnx`, in which versions, and the name of the file; imports none of them."""

from __future__ import annotations

import functools
import importlib.util
from importlib.metadata import version

from resprout.configs.errors import BadInput
from resprout.infra.identity import install_command

VERSIONS = {"onnx": "1.23.2", "onnxscript": "0.7.2", "onnxruntime": "1.32.0"}
FILE = "model.onnx"
"""Name of the graph in a model folder that ONNX Runtime serves; its weights lie beside it."""
WEIGHTS = "model.onnx.data"


@functools.cache
def require_onnx() -> None:
    """Raise BadInput unless the packages that write and run a graph are here, in the versions known here."""
    missing = [name for name in VERSIONS if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"ONNX files need {', '.join(missing)}, not installed here; {install_command('onnx')}")
    for name, known in VERSIONS.items():
        if (installed := version(name)) != known:
            raise BadInput(
                f"{name} {installed} is installed, but ONNX files are made and judged by {known}; "
                f"pip install '{name}=={known}'"
            )
