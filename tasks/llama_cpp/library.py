"""Which llama.cpp is used: the package of the extra `llama` in one version, each library with its digest."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import platform
import sys
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.tasks.core.extras import require_library

PACKAGE, DISTRIBUTION, VERSION = "llama_cpp_py_sync", "llama-cpp-py-sync", "0.11739"
"""llama.cpp b11739, commit 0ce8cd11416c8840498e6701bcbe39ad4b858c2b."""
DIGESTS = {
    ("linux", "x86_64"): {
        "libggml-base.so.0": "86f507c03862168f5bdac05d5d100c89ee4dca990e97dd1287618dce0a2f3a60",
        "libggml-cpu.so.0": "867d23f38f550f523dc56f62a11cd893b4a89bce4f7dfb2b39bdab7ada7eeb67",
        "libggml-rpc.so.0": "f91fca7c2a274575374e38a1fb4e9082d96ce8a27fff10795baa474c77147bac",
        "libggml.so.0": "cf20e84da8e13e211f031313ac1293d1fef78308baf343d22a166bc4e16183e6",
        "libllama.so": "a7b75344d050b5becf6fb0dd947ddf3876f9d069607e660bfca85800ade6b4bb",
    }
}
"""SHA-256 of the libraries in the package's wheel, where it was tried."""


@functools.cache
def require_llama_cpp() -> None:
    """Raise BadInput unless the extra `llama` is installed, in the version and with the bytes known here."""
    require_library("GGUF files", "llama.cpp", PACKAGE, DISTRIBUTION, VERSION, "llama")
    found = importlib.util.find_spec(PACKAGE)
    place = Path(found.origin or "").parent if found is not None else Path()
    known = DIGESTS.get((sys.platform, platform.machine()), {})
    for name, digest in known.items():
        path = place / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise BadInput(
                f"{name} of {DISTRIBUTION} {VERSION} is not the library that was released; "
                f"pip install --force-reinstall --no-deps '{DISTRIBUTION}=={VERSION}'"
            )
