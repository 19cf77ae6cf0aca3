"""The metadata of a safetensors file in the order of its names, so that equal weights are equal bytes."""

from __future__ import annotations

import json
from pathlib import Path


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place, which the library writes in an order by chance."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"the header of {path.name} is not written as safetensors writes it")
        file.seek(8)
        file.write(text.ljust(length))
