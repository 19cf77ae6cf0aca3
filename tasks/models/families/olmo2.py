"""OLMo 2: norms behind each sublayer, and queries and keys normalised over all heads at once.

Because those norms run over all heads, the others change when one goes, so heads are no units here.
"""

from __future__ import annotations

from resprout.tasks.models.families.family import (
    FIXED_HEADS,
    Config,
    Family,
    Tensors,
    ends,
    gated_ffn,
    linear,
    rms_norm,
)


def _attention(config: Config) -> Tensors:
    bias = bool(config.get("attention_bias"))
    return {
        **linear("self_attn.q_proj", "query", "hidden", bias),
        **linear("self_attn.k_proj", "key", "hidden", bias),
        **linear("self_attn.v_proj", "value", "hidden", bias),
        **linear("self_attn.o_proj", "hidden", "query", bias),
        **rms_norm("self_attn.q_norm", "query"),
        **rms_norm("self_attn.k_norm", "key"),
        **rms_norm("post_attention_layernorm"),
    }


def _ffn(config: Config) -> Tensors:
    projections = {name: axes for name, axes in gated_ffn(config).items() if name.startswith("mlp.")}
    return {**projections, **rms_norm("post_feedforward_layernorm")}


FAMILY = Family(
    "olmo2",
    attention=_attention,
    ffn=_ffn,
    ends=ends,
    units=FIXED_HEADS,
    attention_bias_key="attention_bias",
    gguf="olmo2",
)
