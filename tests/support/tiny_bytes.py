"""A tokenizer of one token a byte, and random llamas over it, for tests whose text is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_tokenizer(*more: str, **settings: Any) -> PreTrainedTokenizerFast:
    """One token a byte, then <s>, </s> and the special tokens in `more`; it adds none by itself."""
    special = ["<s>", "</s>", *more]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate([*alphabet, *special])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", **settings)


def byte_llama(seed: int, **widths: Any) -> LlamaForCausalLM:
    """A random llama of two layers over the bytes, <s> and </s>."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **widths})).eval()


def write_byte_llama(folder: Path, seed: int, **widths: Any) -> Path:
    """Such a model and its tokenizer in a folder."""
    byte_llama(seed, **widths).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
