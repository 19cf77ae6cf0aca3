"""Offloading: a layer's weights are read from files when it runs, hidden states kept on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.tasks.models.anatomy import OFFLOAD
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.layouts import cut_class
from resprout.tasks.models.load import DTYPES, check_folder
from resprout.tasks.models.shape import Model, shape_of

NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Names of dtypes in safetensors."""


class WeightOffload:
    """The tensors of a model folder, read when they are asked for: in `dtype`, on `device`."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        from safetensors import safe_open

        self.dtype, self.device = getattr(torch, dtype), device
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as opened:
                self._files |= dict.fromkeys(opened.keys(), path)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, inside in by_file.items():
            # Tensors are views of the mapped file: what was read stays resident until it is closed.
            with safe_open(path, framework="pt") as opened:
                for name in inside:
                    found[name] = opened.get_tensor(name).to(self.device, self.dtype, copy=True)
        return found


def open_model(folder: Path, dtype: str, device: str, trust_remote_code: bool = False) -> Model:
    """The model in `folder`: embeddings and head in memory, layers on the meta device until `Layer.loaded`.

    A folder whose weights have other names in its files than in the model (fused experts, for one) cannot be
    read so and raises BadInput, as does what `load_model` refuses.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    check_folder(folder)
    if dtype not in DTYPES:
        raise BadInput(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    shape, weights = shape_of(folder), WeightOffload(folder, dtype, device)
    if missing := sorted(name for name, _ in shape.tensors() if name not in weights):
        raise BadInput(
            f"{folder} does not hold {len(missing)} tensors under the names that the model uses "
            f"({missing[0]}), so it cannot be read layer by layer; give prune.memory: whole"
        )
    config: Any = AutoConfig.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )
    stock = AutoModelForCausalLM._model_mapping[type(config)]
    kind: Any = cut_class(stock) if shape.config.get(LAYOUT_KEY) is not None else stock
    # Memory that nothing is written to is not taken; buffers, which no file holds, are computed as ever.
    before = torch.get_default_dtype()
    torch.set_default_dtype(weights.dtype)
    try:
        with no_init_weights():
            model: Model = kind(config)
    finally:
        torch.set_default_dtype(before)
    for layer in getattr(model.get_submodule(shape.family.decoder), shape.family.layers):
        layer.to("meta")
    ends = weights.read(shape.family.ends(shape.config))
    model.load_state_dict(ends, strict=False, assign=True)
    model.tie_weights()
    setattr(model, OFFLOAD, weights)
    model.requires_grad_(False)
    return model.eval()


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
