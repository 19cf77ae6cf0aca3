"""A section of a config that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Written:
    """A section of the config: its values as plain data, None where it is left out, and why they are so."""

    name: str
    why: Sequence[str]
    values: Any = None
