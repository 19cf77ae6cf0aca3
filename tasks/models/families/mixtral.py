"""Mixtral (Jiang et al., 2024): Mistral's attention, and experts behind a router in place of the FFN."""

from __future__ import annotations

from resprout.tasks.models.families.family import SPARSE, Family, Keys, attention, ends, experts

FAMILY = Family(
    "mixtral",
    attention=attention,
    ffn=experts,
    ends=ends,
    ffn_reader="",
    units=SPARSE,
    keys=Keys(experts=("num_local_experts",)),
    gguf="llama",
    rotary_pairs=True,
)
