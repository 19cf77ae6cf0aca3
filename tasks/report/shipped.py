"""The file that a run ships beside the one that came in: which it is, and whether it is larger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resprout.configs.result import ShippedResult
from resprout.tasks.quantize.names import TRANSFORMERS, judged, program_of

AS_LARGE = 1.01
"""Files count as equally large up to this ratio of their bytes."""


class Shipped(ShippedResult):
    """The file that a run ships beside the one that came in, and what is to be said of them."""

    @property
    def ratio(self) -> float:
        """Return the bytes of what ships over those of what came in."""
        return self.bytes / self.source_bytes

    @property
    def alike(self) -> bool:
        """Whether the same program, transformers, serves both."""
        return program_of(self.format) == TRANSFORMERS and not self.source_format.startswith("gguf")

    @property
    def larger(self) -> str:
        """Return a sentence that it is larger than its source; empty where it is not."""
        if self.ratio <= AS_LARGE:
            return ""
        return (
            f"The file that ships ({self.format}, {self.bytes / 1e6:,.1f} MB) is {self.ratio:.2f} times as "
            f"large as the one that came in ({self.source_format}, {self.source_bytes / 1e6:,.1f} MB)."
        )

    def before(self, lead: str) -> str:
        """Return the beginning of a verdict, with the sentence on a larger file in front of it."""
        return f"{self.larger} {lead[:1].upper()}{lead[1:]}" if self.larger else lead


def shipped(
    config: Mapping[str, Any], exports: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]
) -> Shipped | None:
    """Return what ships: the file that the verdict is about, else the first export of a whole model.

    `exports` are the rows of exports.json, `origin` is the object of source.json; None where one is missing.
    """
    whole = {one["format"]: one["weight_bytes"] for one in exports if "weight_bytes" in one}
    name = judged(config)
    name = name if name in whole else next(iter(whole), None)
    if name is None or not origin.get("source_bytes"):
        return None
    return Shipped(
        format=name,
        bytes=whole[name],
        source_format=origin.get("source_format", "unknown"),
        source_bytes=origin["source_bytes"],
    )
