"""Canonical JSON: equal data gives equal bytes, and so an equal hash."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from resprout.configs.errors import BadInput

DIGEST = re.compile(r"[0-9a-f]{64}")


def canonical_json(data: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys and no spaces; NaN and infinities raise ValueError."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def check_digest(text: str, what: str = "digest") -> str:
    """Return `text` when it is 64 hexadecimal digits; else raise BadInput."""
    if not DIGEST.fullmatch(text):
        raise BadInput(f"'{text[:80]}' is not a {what}; give 64 lower-case hexadecimal digits (a SHA-256)")
    return text
