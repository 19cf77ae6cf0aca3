"""Hidden states between two layers: in memory, or on disk where they would take too much of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor


class Spool:
    """Tensors by number; those beyond `limit_bytes` lie in files of a folder that goes with the spool."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._held: list[Tensor | Path] = []
        self._bytes = 0
        self._folder: TemporaryDirectory[str] | None = None

    def append(self, tensor: Tensor) -> None:
        """Add a tensor behind the others."""
        self._held.append(self._kept(len(self._held), tensor))

    def __setitem__(self, number: int, tensor: Tensor) -> None:
        if not isinstance(self._held[number], Path):
            self._bytes -= self[number].nbytes
        self._held[number] = self._kept(number, tensor)

    def __getitem__(self, number: int) -> Tensor:
        from safetensors.torch import load_file

        held = self._held[number]
        return load_file(held)["hidden"] if isinstance(held, Path) else held

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def _kept(self, number: int, tensor: Tensor) -> Tensor | Path:
        from safetensors.torch import save_file

        if self.limit_bytes is None or self._bytes + tensor.nbytes <= self.limit_bytes:
            self._bytes += tensor.nbytes
            return tensor
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="resprout-hidden-")
        path = Path(self._folder.name) / f"{number}.safetensors"
        save_file({"hidden": tensor.contiguous()}, path)
        return path
