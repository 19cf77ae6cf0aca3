"""The metadata at the start of a GGUF file, without the `gguf` package's two seconds for the vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from resprout.configs.errors import BadInput

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
MAX_STRING_BYTES = 64 * 1024 * 1024


def gguf_metadata(path: Path) -> dict[str, str | int | float | bool]:
    """All scalar key-value pairs of a GGUF file (versions 2 and 3); what is no such file raises BadInput.

    Source: the GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise BadInput(
                    f"{path.name} does not begin with 'GGUF', so it is no GGUF file; fetch it again"
                )
            version = _number(file, "<I")
            if version not in (2, 3):
                raise BadInput(f"{path.name} has GGUF version {version}; versions 2 and 3 can be read")
            _number(file, "<Q")
            found: dict[str, str | int | float | bool] = {}
            for _ in range(int(_number(file, "<Q"))):
                key = _string(file)
                value = _value(file, int(_number(file, "<I")))
                if value is not None:
                    found[key] = value
            return found
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise BadInput(f"{path.name} is a damaged or unfinished GGUF file; fetch it again") from error


def quantisation(metadata: dict[str, str | int | float | bool]) -> str:
    """Name of the file's most common quantisation, say 'Q4_1'; 'unknown' where the file does not say."""
    from gguf import LlamaFileType

    try:
        return (
            LlamaFileType(int(metadata["general.file_type"]))
            .name.removeprefix("MOSTLY_")
            .removeprefix("ALL_")
        )
    except (KeyError, ValueError):
        return "unknown"


def _value(file: BinaryIO, kind: int) -> str | int | float | bool | None:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, FORMATS[kind])
    item, count = int(_number(file, "<I")), int(_number(file, "<Q"))
    if item in (STRING, ARRAY):
        for _ in range(count):
            _value(file, item)
    else:
        file.seek(struct.calcsize(FORMATS[item]) * count, 1)
    return None


def _number(file: BinaryIO, form: str) -> int | float | bool:
    value: int | float | bool = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value


def _string(file: BinaryIO) -> str:
    length = int(_number(file, "<Q"))
    if length > MAX_STRING_BYTES:
        raise KeyError(length)
    data = file.read(length)
    if len(data) != length:
        raise struct.error
    return data.decode()
