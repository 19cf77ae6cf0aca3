"""A GGUF file reads text as the tokenizer that it was made of."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.splits import KEPT, PRE, SPLITS, check_split, keep_split, split_of
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.llama_cpp.process import LlamaCpp
from tiny_models import FITTING, tiny_model

SPECIAL = ["<|begin|>", "<|end|>"]
PIECES = [
    ["the", "river", "runs", "through", "town", "don't", "we've", "They'LL", "HTTPServer", "café", "Straße"],
    ["日本語のテキスト", "中文分词", "한국어", "Привет", "مرحبا", "שלום", "ไทย", "हिन्दी पाठ", "Ελληνικά"],
    ["½", "²", "٣٤٥", "१२३", "Ⅷ", "ﬁ", "😀👍🏽"],
    [
        "def f(x):\n    return x+1\n",
        "a_b__c",
        "x==y!=z",
        "/* c */",
        '{"k": [1, 2.5e-3]}',
        "https://e.org/?b=1&c=%20",
    ],
    ["0", "42", "1234567890", "3.14159", "1,000,000", "2024-01-31", "0x1F", " 12", "  34", "v1.2.3"],
    [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000"],
    ["...", "!?", "—", "“quoted”", "'s", "''", "$5.00", "50%", "(a)", "***"],
    SPECIAL,
]
FAMILIES = [
    ("gemma2", "sentencepiece"),
    ("gemma3_text", "sentencepiece"),
    ("gpt2", "gpt-2"),
    ("gpt_neox", "gpt-2"),
    ("llama", "llama-bpe"),
    ("llama", "smollm"),
    ("llama", "default"),
    ("mistral", "sentencepiece"),
    ("mixtral", "sentencepiece"),
    ("olmo2", "dbrx"),
    ("phi3", "sentencepiece"),
    ("qwen2", "qwen2"),
    ("qwen2_moe", "qwen2"),
    ("qwen3", "qwen2"),
    ("qwen3_moe", "qwen2"),
]
"""Each family that llama.cpp computes, with the tokenizers that its models have."""


def texts(count: int, seed: int) -> list[str]:
    """Edge cases, then random joins of words, scripts, code, digits, spaces, punctuation, special tokens."""
    drawn = random.Random(seed)
    found = ["", " ", "\n", "1", "  1", "a  1", "a   bc", "\n 1", "DON'T", "x" * 60]
    while len(found) < count:
        parts = [drawn.choice(drawn.choice(PIECES)) for _ in range(drawn.randint(1, 8))]
        found.append(drawn.choice(["", " "]).join(parts))
    return found


@functools.cache
def trained(kind: str) -> str:
    """tokenizer.json of 1,500 tokens: byte-level BPE that splits so, or SentencePiece's BPE."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    corpus = texts(3000, seed=1)
    if kind == "sentencepiece":
        made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        made.normalizer = normalizers.Replace(" ", "▁")
        special = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        # Joined over words, as SentencePiece never does.
        made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        made.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1500, special_tokens=special))
        described = json.loads(made.to_str())
        described["pre_tokenizer"] = None
        described["added_tokens"] = described["added_tokens"][: 1 + len(SPECIAL)]
        return json.dumps(described)
    made = Tokenizer(models.BPE(ignore_merges=SPLITS[kind].ignore_merges))
    made = Tokenizer.from_str(
        json.dumps({**json.loads(made.to_str()), "pre_tokenizer": SPLITS[kind].pre_tokenizer})
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(corpus, trainer)
    return made.to_str()


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_llama_cpp_reads_text_as_transformers_does(family: str, kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(trained(kind))
    begin, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=begin, eos_token=end)
    tokenizer.save_pretrained(tmp_path)
    model = tiny_model(family, vocab_size=1536, **FITTING.get(family, {}))
    write_gguf(model, tokenizer, tmp_path, tmp_path / "model.gguf", GgufType.F32)

    with LlamaCpp(tmp_path / "model.gguf") as llama:
        llama.load(64, 1)
        read = {text: llama.tokenize(text) for text in texts(500, seed=7)}

    assert [text for text, ids in read.items() if tokenizer(text).input_ids != ids] == []


def tokenizer_in(folder: Path, **pre_tokenizer: Any) -> dict[str, Any]:
    described = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": pre_tokenizer}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text("{}")
    return described


METADATA = {"tokenizer.ggml.model": "gpt2"}


@pytest.mark.parametrize("name", [name for key, one in SPLITS.items() for name in (key, *one.aliases)])
def test_the_split_of_a_source_file_is_kept_by_its_name(name: str, tmp_path: Path) -> None:
    tokenizer_in(tmp_path, type="ByteLevel")

    keep_split(tmp_path, {**METADATA, PRE: name}, "source.gguf")

    described = json.loads((tmp_path / "tokenizer.json").read_text())
    assert split_of(described, json.loads((tmp_path / "tokenizer_config.json").read_text())[KEPT]) == name


def test_a_name_is_dropped_where_the_tokenizer_no_longer_splits_so(tmp_path: Path) -> None:
    assert split_of(tokenizer_in(tmp_path, type="ByteLevel"), "smollm") == "gpt-2"


def test_a_source_file_whose_split_is_not_known_is_refused() -> None:
    with pytest.raises(BadInput, match=r"source.gguf names 'own' .* known are llama-bpe.*safetensors folder"):
        check_split({**METADATA, PRE: "own"}, "source.gguf")
