"""Look at a model without its weights: shape, chat template, licence, and how long its tokens are."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.flows.inputs import find, model_files
from resprout.tasks.acquire.licence import local_licence
from resprout.tasks.acquire.model import quantisation
from resprout.tasks.acquire.source import Context, Wanted, fetch, head, pin, scheme_of
from resprout.tasks.acquire.sources.package import distribution
from resprout.tasks.gguf.splits import check_split
from resprout.tasks.models.gguf_header import gguf_shape, read_header
from resprout.tasks.models.shape import Shape, read_config, shape_of
from resprout.tasks.models.tokenizer_files import (
    NO_TOKENIZER,
    ChatTemplate,
    chat_template,
    gguf_chat_template,
    gguf_has_tokenizer,
    has_tokenizer,
)

SMALL_BYTES = 64 * 1024 * 1024
"""Files of a model elsewhere that are brought to look at: config, tokenizer, chat template."""
HEADER_BYTES = 32 * 1024 * 1024
"""Of a GGUF file elsewhere; a header with a vocabulary of 256,000 and its merges has less than 20 million."""
MEASURED_TEXTS = 200
HEAVY = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
CHARACTERS_PER_TOKEN = 6.0
"""Where no tokenizer can be asked: more than English has, so that what is planned for is there."""


@dataclass(frozen=True)
class ModelLook:
    """What is known of a model; `shape` is None where only its weights file, which is elsewhere, says it."""

    name: str
    shape: Shape | None
    licence: str | None
    chat: ChatTemplate | None
    tokenizer: str | None = None
    """tokenizer.json."""
    gguf_type: str | None = None
    """Of a GGUF file the type that it says, such as Q4_1; `bytes` is its size."""
    bytes: int = 0

    def characters_per_token(self, texts: Sequence[str]) -> float:
        """Characters of the first texts by their tokens, a tenth more for safety."""
        texts = texts[:MEASURED_TEXTS]
        characters = sum(map(len, texts))
        if self.tokenizer is None or not characters:
            return CHARACTERS_PER_TOKEN
        from tokenizers import Tokenizer

        encoded = Tokenizer.from_str(self.tokenizer).encode_batch(list(texts), add_special_tokens=False)
        return 1.1 * characters / max(1, sum(map(len, encoded)))


def _without_type(name: str, kind: str) -> str:
    """The name of a file without the type that it ends with, which the pruned one may not have."""
    return re.sub(rf"[-._]{re.escape(kind)}$", "", name, flags=re.IGNORECASE) or name


def look_at_model(address: str, here: Context, allow_pickle: bool = False) -> ModelLook:
    """The look at a model; BadInput where it is not there, cannot be pruned, or has no tokenizer."""
    wanted = Wanted("model", allow_pickle)
    place = find(address, wanted, here)
    if place is None:
        return _elsewhere(address, wanted, here)
    beside = {place.name: place} if place.is_file() else {one.name: one for one in place.iterdir()}
    licence = local_licence(beside)
    if licence is None and scheme_of(address) == "package":
        module = address.removeprefix("package://").partition("/")[0]
        licence = distribution(module, place).get("licence")
    return _seen(address, place.name, model_files(address, place, wanted), licence)


def _elsewhere(address: str, wanted: Wanted, here: Context) -> ModelLook:
    """The look at a model behind a network or a registry, of which small files are brought, no weights."""
    pinned = pin(address, wanted, here)
    name = pinned.label.rpartition("/")[2]
    files = {one.path: Path(one.location) for one in pinned.files}
    if all(path.is_absolute() for path in files.values()):
        # A registered version may lie in a folder of this machine.
        return _seen(address, name, files, pinned.licence)
    small = [one for one in pinned.files if not one.path.endswith(HEAVY) and one.size < SMALL_BYTES]
    with tempfile.TemporaryDirectory() as scratch:
        if small:
            brought = fetch(replace(pinned, files=tuple(small)), here, Path(scratch))
            return _seen(address, name, brought, pinned.licence)
        # A GGUF file alone, whose header says it all.
        start = head(pinned, pinned.files[0], here, HEADER_BYTES)
        if start is None:
            return ModelLook(name, None, pinned.licence, None)
        path = Path(scratch) / Path(pinned.files[0].path).name
        path.write_bytes(start)
        licence = pinned.licence or local_licence({path.name: path})
        return _seen(address, name, {path.name: path}, licence, pinned.files[0].size)


def _seen(
    address: str, name: str, files: Mapping[str, Path], licence: str | None, size: int | None = None
) -> ModelLook:
    first = next(iter(files.values()))
    size = first.stat().st_size if size is None else size
    if first.suffix == ".gguf":
        metadata = read_header(first)[0]
        if not gguf_has_tokenizer(metadata):
            raise BadInput(f"{address} {NO_TOKENIZER}")
        check_split(metadata, address)
        kind = quantisation(metadata)
        chat = gguf_chat_template(metadata)
        return ModelLook(_without_type(first.stem, kind), gguf_shape(first), licence, chat, None, kind, size)
    if not has_tokenizer(files):
        raise BadInput(f"{address} {NO_TOKENIZER}")
    shape = shape_of(read_config(files["config.json"].parent, address))
    tokenizer = files.get("tokenizer.json")
    text = tokenizer.read_text(encoding="utf-8") if tokenizer is not None else None
    return ModelLook(name, shape, licence, chat_template(files), text)
