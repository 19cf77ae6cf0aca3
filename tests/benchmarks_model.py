"""The model that benchmarks of pruning share."""

from __future__ import annotations

from typing import Any

RANDOM_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
