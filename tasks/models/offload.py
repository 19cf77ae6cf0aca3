"""Files in place of memory: hidden states that do not fit, and a model written tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch
from torch import Tensor

SHARD = "50GB"
"""Largest file of `save_pretrained`."""
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Names of dtypes in safetensors."""


class SafetensorsWriter:
    """A safetensors file written tensor by tensor, to the bytes that `save_file` would write at once."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        width = getattr(torch, dtype).itemsize
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        end = 0
        for name in sorted(tensors):
            begin, end = end, end + width * torch.Size(tensors[name]).numel()
            entries[name] = {
                "dtype": NAMES[dtype], "shape": list(tensors[name]), "data_offsets": [begin, end],
            }  # fmt: skip
            self._places[name] = (begin, tensors[name])
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._start, self._dtype = 8 + len(header), getattr(torch, dtype)
        self._file: BinaryIO = path.open("wb")
        self._file.write(struct.pack("<Q", len(header)) + header)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place."""
        begin, dims = self._places.pop(name)
        if tuple(tensor.shape) != dims or tensor.dtype != self._dtype:
            given = f"{list(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"{name} is {given}, expected {list(dims)} {self._dtype}")
        self._file.seek(self._start + begin)
        self._file.write(tensor.contiguous().cpu().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """End the file; a tensor that was not put raises ValueError."""
        self._file.close()
        if self._places:
            raise ValueError(f"{len(self._places)} tensors were not written, {min(self._places)} for one")


class ModelWriter:
    """The weights of a model folder written a few at a time, to the bytes that `save_pretrained` would write.

    But beyond `SHARD`, experts that are fused in memory may come to lie in another one of the files.

    `model` says in which dtype, and how its file differs in form (experts that are fused in memory);
    `tensors` are the names and dimensions of what it is given, all in memory's form.
    """

    def __init__(self, model: Any, tensors: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        from huggingface_hub import split_torch_state_dict_into_shards

        self._model = model
        empty = {name: torch.empty(dims, dtype=model.dtype, device="meta") for name, dims in tensors.items()}
        # Parts of a fused tensor would count as large as the whole.
        stored = {name: torch.empty_like(one) for name, one in self._as_stored(empty).items()}
        split = split_torch_state_dict_into_shards(stored, max_shard_size=SHARD)
        dtype = str(model.dtype).removeprefix("torch.")
        self._files = {
            file: SafetensorsWriter(folder / file, {one: tuple(stored[one].shape) for one in names}, dtype)
            for file, names in split.filename_to_tensors.items()
        }
        self._file_of = split.tensor_to_filename
        if split.is_sharded:
            params = sum(one.numel() for one in empty.values())
            index = {
                "metadata": {"total_parameters": params, **split.metadata},
                "weight_map": split.tensor_to_filename,
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors by their names in memory: all of a layer together."""
        for name, tensor in self._as_stored(tensors).items():
            self._files[self._file_of[name]].put(name, tensor)

    def close(self) -> None:
        """End the files; a tensor that was not put raises ValueError."""
        for one in self._files.values():
            one.close()

    def _as_stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self._model, dict(tensors))
        return found


class ActivationOffload:
    """Tensors by number; those beyond `limit_bytes` lie in files of a folder that is deleted with it."""

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
