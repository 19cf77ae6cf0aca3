"""Parts of a reconstruction that are done, each in a file of its own, from which another process goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.core.job import Checkpoints
from resprout.tasks.recover.checkpoint import opened

VALUES = "state.json"


@dataclass
class DoneParts:
    """The entries of the parts that are done, and their weights, of which none stays in memory."""

    checkpoints: Checkpoints | None
    folder: Path
    generator: np.random.Generator
    """Draws the order of the rows for one part after another."""
    entries: list[dict[str, float]] = field(default_factory=list)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    @contextmanager
    def of(
        cls, checkpoints: Checkpoints | None, generator: np.random.Generator, parts: int
    ) -> Iterator[DoneParts]:
        """Those of the newest checkpoint, or none; `generator` goes on from there.

        Raises:
            BadInput: the checkpoint is of another reconstruction.
        """
        with tempfile.TemporaryDirectory(prefix="resprout-parts-") as scratch:
            found = cls(checkpoints, Path(scratch), generator)
            with opened(checkpoints) as before:
                if before is not None:
                    found._take_over(before, parts)
            yield found

    def _take_over(self, before: Path, parts: int) -> None:
        values = parse_json((before / VALUES).read_bytes(), VALUES)
        if values["parts"] != parts:
            raise BadInput(
                f"the checkpoint is of a reconstruction in {values['parts']} parts, not in {parts}; run with "
                "the config that it was made with, or delete it by `resprout gc`"
            )
        for path in before.glob("*.safetensors"):
            shutil.copyfile(path, self.folder / path.name)
        self.entries = values["entries"]
        self.generator.bit_generator.state = values["generator"]

    def weights(self, part: int) -> dict[str, Tensor]:
        """Those of a part that is done, by name."""
        from safetensors.torch import load_file

        return load_file(self.folder / _file(part))

    def add(self, entry: dict[str, float], weights: Mapping[str, Any]) -> None:
        """The next part is done."""
        from safetensors.torch import save_file

        if self.checkpoints is not None:
            kept = {name: each.detach().cpu().contiguous() for name, each in weights.items()}
            save_file(kept, self.folder / _file(len(self.entries)))
        self.entries.append(entry)

    def save(self, parts: int, minutes: float) -> None:
        """Keep a checkpoint where the last one was so many minutes ago, and not all parts are done."""
        due = time.monotonic() - self.saved > 60 * minutes
        if self.checkpoints is None or not due or len(self.entries) == parts:
            return
        values = {"parts": parts, "entries": self.entries, "generator": self.generator.bit_generator.state}
        (self.folder / VALUES).write_text(json.dumps(values, sort_keys=True), encoding="utf-8")
        self.checkpoints.save(self.folder, len(self.entries))
        self.saved = time.monotonic()


def _file(part: int) -> str:
    return f"part-{part:05}.safetensors"
