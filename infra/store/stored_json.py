"""JSON that comes from a disk or a store, where anybody may have written it: sound, or one kind of error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from resprout.configs.errors import VerificationFailed

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, by its format."""


class DamagedJson(VerificationFailed, ValueError):
    """Bytes are no JSON, are not UTF-8, or are nested deeper than anything that resprout writes."""


def parse_json(data: bytes | str, what: str, *, finite: bool = False) -> Any:
    """Return the value in `data`; DamagedJson, which names `what`, where there is none to read.

    The parser of pydantic nests at most 200 levels, so deep input ends here and not at the limit of the
    stack. With `finite`, NaN and infinities, which are not JSON, are refused.
    """
    try:
        found = from_json(data, allow_inf_nan=not finite)
        if finite and _infinite(found):
            raise ValueError("a number is too large for a float")
        return found
    except ValueError as error:
        raise DamagedJson(f"{what} is not valid JSON ({error})") from None


def _infinite(value: Any) -> bool:
    """Whether a number in a JSON value, say 1e999, became an infinity."""
    if isinstance(value, dict):
        return any(map(_infinite, value.values()))
    if isinstance(value, list):
        return any(map(_infinite, value))
    return isinstance(value, float) and math.isinf(value)


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a safetensors file says of each tensor, by name, its metadata left out.

    Raises:
        DamagedJson: it is no complete safetensors file.
    """
    with path.open("rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise DamagedJson(f"{path.name} is no complete safetensors file: it ends in its header")
        header = parse_json(file.read(length), f"the header of {path.name}")
    fault = f"{path.name} is no complete safetensors file"
    try:
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        end = 0
        for one in tensors.values():
            first, last = one["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (first, last, *one["shape"]))
            kinds = isinstance(one["dtype"], str) and isinstance(one["shape"], list)
            if not kinds or not whole or first > last:
                raise ValueError("a type, a shape or a place is none")
            end = max(end, last)
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise DamagedJson(f"{fault}: its header lists no tensors ({type(error).__name__})") from None
    if 8 + length + end != size:
        raise DamagedJson(f"{fault}: its length is not what its header says")
    return tensors
