"""The header reader against files that the gguf package wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from resprout.configs.errors import BadInput
from resprout.tasks.models.gguf_header import gguf_shape, read_header, refuse_cut


def write(
    path: Path,
    architecture: str = "llama",
    tied: bool = True,
    heads: int = 4,
    embedding: str = "token_embd",
    parts: int = 0,
    layers: int = 2,
) -> Path:
    """A small model's header with a vocabulary of 50 and one real tensor each."""
    writer = GGUFWriter(str(path), architecture)
    if parts:
        writer.add_uint16("split.count", parts)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token {index} ü" for index in range(50)])
    writer.add_token_types([1] * 50)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor(f"{embedding}.weight", np.zeros((50, 32), dtype=np.float32))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((50, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_shape_is_the_one_written(tmp_path: Path) -> None:
    shape = gguf_shape(write(tmp_path / "m.gguf"))
    assert (shape.layers, shape.hidden, shape.vocab, shape.max_positions) == (2, 32, 50, 128)
    assert (shape.ffn, shape.kv_heads, shape.heads_per_group, shape.head_dim) == ((48, 48), (2, 2), (2, 2), 8)
    assert shape.tied
    assert not gguf_shape(write(tmp_path / "u.gguf", tied=False)).tied
    assert gguf_shape(write(tmp_path / "g.gguf", "gemma3")).model_type == "gemma3_text"


def test_values_behind_arrays_are_still_read(tmp_path: Path) -> None:
    metadata, tensors = read_header(write(tmp_path / "m.gguf"))
    assert metadata["tokenizer.ggml.tokens"] == 50
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert tensors == {"token_embd.weight": (32, 50)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"PK\x03\x04", "no GGUF file"), (b"GGUF", "damaged"), (b"GGUF" + b"\x09" + b"\x00" * 40, "version 9")],
)
def test_what_is_no_gguf_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=expected):
        gguf_shape(path)


def test_a_file_that_ends_before_its_last_tensor_is_refused(tmp_path: Path) -> None:
    """The tensor is the last thing in the file, so a whole file may not lack one byte of it."""
    path = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    end = len(whole) - (-(50 * 32 * 4) % 32)
    path.write_bytes(whole[:end])
    refuse_cut(path)
    path.write_bytes(whole[: end - 1])
    assert read_header(path)[0]["llama.block_count"] == 2
    with pytest.raises(BadInput, match=rf"ends after {end - 1:,} of {end:,} bytes.*fetch it again"):
        refuse_cut(path)


def test_every_cut_of_the_header_is_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    for length in range(4, 600, 37):
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=r"cut\.gguf"):
            gguf_shape(path)


def test_another_architecture_says_which_are_supported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="llama, mistral, qwen2, qwen3, gemma3"):
        gguf_shape(write(tmp_path / "m.gguf", "bert"))


def test_a_header_without_embeddings_or_heads_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no matrix token_embd\.weight"):
        gguf_shape(write(tmp_path / "m.gguf", embedding="blk.0.attn_q"))
    with pytest.raises(BadInput, match=r"lacks a single llama\.attention\.head_count from 1"):
        gguf_shape(write(tmp_path / "m.gguf", heads=0))
    with pytest.raises(BadInput, match=r"head_count 5 is no multiple of .*head_count_kv 2"):
        gguf_shape(write(tmp_path / "m.gguf", heads=5))
    with pytest.raises(BadInput, match=r"lacks a single llama\.block_count from 1 to 10,000"):
        gguf_shape(write(tmp_path / "m.gguf", layers=10**8))


def test_a_tensor_of_many_dimensions_is_damage_not_a_claim_on_memory(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    name = b"token_embd.weight"
    count = whole.index(name) + len(name)
    (tmp_path / "m.gguf").write_bytes(whole[:count] + b"\x05\x00\x00\x00" + whole[count + 4 :])
    with pytest.raises(BadInput, match=r"damaged GGUF file.*a tensor of 5 dimensions"):
        read_header(tmp_path / "m.gguf")


def test_an_array_longer_than_any_file_is_damage(tmp_path: Path) -> None:
    """The length of the token types behind their type (5, int32) is 2^62, and no file has that many bytes."""
    whole = write(tmp_path / "m.gguf").read_bytes()
    name = b"tokenizer.ggml.token_type"
    start = whole.index(name) + len(name) + 8
    (tmp_path / "m.gguf").write_bytes(whole[:start] + (1 << 62).to_bytes(8, "little") + whole[start + 8 :])
    with pytest.raises(BadInput, match=r"m\.gguf is a damaged GGUF file"):
        read_header(tmp_path / "m.gguf")


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"one of 3 parts of a split GGUF file; join them"):
        gguf_shape(write(tmp_path / "m.gguf", parts=3))
    assert gguf_shape(write(tmp_path / "m.gguf", parts=1)).layers == 2
