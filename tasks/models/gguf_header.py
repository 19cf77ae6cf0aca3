"""Shape of the model in a GGUF file from its header alone, in milliseconds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian). The gguf
package builds Python objects for the whole vocabulary; `validate` has to answer in under a second, so values
of the tokenizer are skipped here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from resprout.configs.errors import BadInput
from resprout.tasks.models.shape import MOST_LAYERS, MOST_WIDTH, Shape

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}
"""The architectures that are read, as GGUF and as transformers names them."""
LONGEST_STRING = 1 << 20
LONGEST_SKIP = 1 << 40
MOST_DIMENSIONS = 4
ALIGNMENT = 32
"""Multiple at which tensors begin, where a file names no other."""


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Scalar and string metadata by key (of an array its length), and each tensor's shape by name.

    The header is enough: the file may end behind it.
    """
    metadata, shapes, _ = _read(path)
    return metadata, shapes


def refuse_cut(path: Path) -> None:
    """Raise BadInput where a GGUF file ends before its last tensor does."""
    *_, needed = _read(path)
    if (size := path.stat().st_size) < needed:
        raise BadInput(
            f"{path.name} ends after {size:,} of {needed:,} bytes, so it was not fetched to its end; "
            "fetch it again"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], int]:
    """Metadata, shapes, and the bytes that a whole file has at least."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise BadInput(f"{path.name} is no GGUF file; give one, or a folder with config.json")
            version, tensors, pairs = _unpack(file, "IQQ")
            if version not in (2, 3):
                raise BadInput(f"{path.name} is GGUF version {version}; versions 2 and 3 can be read")
            metadata = {}
            for _ in range(pairs):
                key = _string(file)
                metadata[key] = _value(file, _unpack(file, "I")[0])
            shapes, end = {}, 0
            for _ in range(tensors):
                name = _string(file)
                dimensions = _unpack(file, "I")[0]
                if dimensions > MOST_DIMENSIONS:
                    raise struct.error(f"a tensor of {dimensions} dimensions")
                shapes[name] = _unpack(file, "Q" * dimensions)
                kind, begin = _unpack(file, "IQ")
                end = max(end, begin + _bytes(kind, shapes[name]))
            alignment = metadata.get("general.alignment", ALIGNMENT)
            return metadata, shapes, -(-file.tell() // alignment) * alignment + end
    except BadInput:
        raise
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise BadInput(f"{path.name} is a damaged GGUF file: its header cannot be read ({error})") from None


def gguf_shape(path: Path) -> Shape:
    """The shape of the decoder in a GGUF file; BadInput for an architecture that is not pruned here."""
    metadata, tensors = read_header(path)
    refuse_part(path, metadata)
    architecture = metadata.get("general.architecture")
    if architecture not in MODEL_TYPES:
        raise BadInput(
            f"{path.name} holds a model of architecture '{architecture}'; supported are "
            f"{', '.join(MODEL_TYPES)} (tasks/models/README.md shows how to add one)"
        )

    def number(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        most = MOST_LAYERS if key == "block_count" else MOST_WIDTH
        if not isinstance(value, int) or value > most or (value <= 0 and value != default):
            raise BadInput(
                f"the header of {path.name} lacks a single {architecture}.{key} from 1 to {most:,}; convert "
                "the model again"
            )
        return value

    if len(tensors.get("token_embd.weight", ())) != 2:
        raise BadInput(
            f"{path.name} holds no matrix token_embd.weight, so it is no whole model; fetch or convert it "
            "again"
        )
    layers, hidden = number("block_count"), number("embedding_length")
    heads = number("attention.head_count")
    kv_heads = number("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise BadInput(
            f"the header of {path.name} is damaged: {architecture}.attention.head_count {heads} is no "
            f"multiple of {architecture}.attention.head_count_kv {kv_heads}; convert the model again"
        )
    return Shape(
        model_type=MODEL_TYPES[architecture],
        hidden=hidden,
        vocab=tensors["token_embd.weight"][1],
        head_dim=number("attention.key_length", hidden // heads),
        heads_per_group=(heads // kv_heads,) * layers,
        ffn=(number("feed_forward_length"),) * layers,
        kv_heads=(kv_heads,) * layers,
        max_positions=number("context_length", 0),
        config={"tie_word_embeddings": "output.weight" not in tensors},
    )


def refuse_part(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise BadInput where a GGUF file is one of several that hold a model together."""
    count = metadata.get("split.count", 1)
    if count != 1:
        raise BadInput(
            f"{path.name} is one of {count} parts of a split GGUF file; join them with llama-gguf-split "
            "--merge, or give the model as a safetensors folder"
        )


def _bytes(kind: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a ggml type, which takes a block of weights together."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return math.prod(shape) // weights * size


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    layout = struct.Struct("<" + form)
    return layout.unpack(file.read(layout.size))


def _string(file: BinaryIO) -> str:
    length = _unpack(file, "Q")[0]
    if length > LONGEST_STRING:
        raise struct.error(f"a string of {length} bytes")
    return file.read(length).decode("utf-8")


def _skip(file: BinaryIO, length: int) -> None:
    if length > LONGEST_SKIP:
        raise struct.error(f"a value of {length} bytes")
    file.seek(length, 1)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind == ARRAY:
        inner, length = _unpack(file, "IQ")
        if inner == STRING:
            for _ in range(length):
                _skip(file, _unpack(file, "Q")[0])
        else:
            _skip(file, length * struct.calcsize("<" + SCALARS[inner]))
        return length
    return _unpack(file, SCALARS[kind])[0]
