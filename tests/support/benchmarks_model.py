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
SMALL = {
    "vocab_size": 1024, "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
    "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
"""688,992 parameters, of them 98,304 in the embedding; 467,808 with half of the FFN channels."""
