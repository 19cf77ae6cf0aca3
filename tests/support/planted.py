"""Secrets that tests plant, and a look for them in everything that a run leaves behind, in any usual form."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus


def forms(secret: str) -> set[bytes]:
    """The secret as it is, quoted for addresses, in hexadecimal, and in base64 wherever it begins."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), quote_plus(secret).encode(), raw.hex().encode()}
    found.add(repr(secret)[1:-1].encode())
    for offset in range(3):
        text = base64.b64encode(b"\0" * offset + raw)
        # The first and last characters also hold bits of the neighbours.
        inner = text[-(-offset * 8 // 6) : len(text) - (4 if text.endswith(b"=") else 0)]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {one for one in found if len(one) >= 8}


def files(*places: Path) -> dict[str, bytes]:
    """Bytes of every file under the places, hidden ones and databases' journals included."""
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


def leaks(secrets: Mapping[str, str], kept: Mapping[str, bytes]) -> list[str]:
    """Which secret is where."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    return [
        f"{name} in {place}"
        for place, data in kept.items()
        for name, patterns in wanted.items()
        if _holds(data, patterns)
    ]


def _holds(data: bytes, patterns: Iterable[bytes]) -> bool:
    return any(pattern in data for pattern in patterns)
