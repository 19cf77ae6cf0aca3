"""What a GGUF file says of a model beside its tensors: widths, rotary embedding, windows, experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from gguf import RopeScalingType

from resprout.tasks.gguf.limits import FULL, ROTARY, SLIDING, check_settings
from resprout.tasks.models.shape import Shape, Widths

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

FILLER = 32
"""FFN channels of a layer that has attention alone."""
NORMS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def write_hyperparameters(writer: GGUFWriter, shape: Shape, config: Mapping[str, Any]) -> Tensor | None:
    """Add them to a file; the tensor `rope_freqs.weight` where the rotary embedding needs one.

    `config` is the whole transformers config, with what config.json leaves at its default.

    Raises:
        BadInput: llama.cpp computes the family without something that this config asks for.
    """
    check_settings(shape, config)
    writer.add_context_length(_context(shape, config))
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_vocab_size(shape.vocab)
    widths = [file_widths(shape, layer) for layer in range(shape.layers)]
    writer.add_head_count(_one([one.kv_heads * one.heads_per_group for one in widths]))
    writer.add_head_count_kv(_one([one.kv_heads for one in widths]))
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    epsilon = next(float(config[key]) for key in NORMS if key in config)
    (writer.add_layer_norm_rms_eps if "rms_norm_eps" in config else writer.add_layer_norm_eps)(epsilon)
    if shape.family.parallel_key:
        writer.add_parallel_residual(shape.family.parallel(config))
    if (window := config.get("sliding_window")) and _slides(config):
        writer.add_sliding_window(int(window))
    for key, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if config.get(key):
            add(float(config[key]))
    _write_ffn(writer, shape, widths, config)
    return _write_rotary(writer, shape, config)


def file_widths(shape: Shape, layer: int) -> Widths:
    """Widths of a layer of the file, which has sublayers of zeros where llama.cpp needs one.

    Its deci drops what attention adds in a layer without an FFN, and takes the length of a head from a first
    layer that has heads.
    """
    own = shape.widths(layer)
    if own.kv_heads and not own.ffn:
        own = replace(own, ffn=FILLER)
    if layer == 0 and not own.kv_heads:
        own = replace(own, kv_heads=1, heads_per_group=1)
    return own


def _one(widths: Sequence[int]) -> int | list[int]:
    """One width where all layers have the same, else each layer's."""
    return widths[0] if len(set(widths)) == 1 else list(widths)


def _slides(config: Mapping[str, Any]) -> bool:
    """Whether some layer attends to a window; a config may name one that no layer uses."""
    return SLIDING in (config.get("layer_types") or ()) and config.get("use_sliding_window", True)


def _context(shape: Shape, config: Mapping[str, Any]) -> int:
    """Positions; of a family whose window llama.cpp does not know no more than that."""
    window = config.get("sliding_window")
    if window and shape.family.gguf == "llama":
        return min(shape.max_positions, int(window))
    return shape.max_positions


def _write_ffn(writer: GGUFWriter, shape: Shape, widths: Sequence[Widths], config: Mapping[str, Any]) -> None:
    if not shape.experts:
        writer.add_feed_forward_length(_one([one.ffn for one in widths]))
        return
    writer.add_feed_forward_length(int(config.get("intermediate_size") or shape.ffn[0]))
    writer.add_expert_count(shape.experts[0])
    writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    writer.add_expert_feed_forward_length(shape.ffn[0])
    if shared := config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(shared))


def _write_rotary(writer: GGUFWriter, shape: Shape, config: Mapping[str, Any]) -> Tensor | None:
    rotary = config.get(ROTARY)
    if not rotary:
        return None
    if FULL in rotary or SLIDING in rotary:
        if (sliding := rotary.get(SLIDING)) is not None:
            writer.add_rope_freq_base_swa(float(sliding["rope_theta"]))
        rotary = rotary.get(FULL) or rotary[SLIDING]
    writer.add_rope_freq_base(float(rotary["rope_theta"]))
    part = float(rotary.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    turned = int(shape.head_dim * part)
    writer.add_rope_dimension_count(turned)
    kind = rotary.get("rope_type", "default")
    if kind == "default":
        return None
    if kind == "llama3":
        return _llama3(rotary, turned)
    writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rotary["factor"]))
    if kind == "yarn":
        positions = rotary.get("original_max_position_embeddings") or shape.max_positions
        writer.add_rope_scaling_orig_ctx_len(int(positions))
    return None


def _llama3(rotary: Mapping[str, Any], turned: int) -> Tensor:
    """By what llama.cpp divides each frequency, for Llama 3's scaling (transformers' `llama3`)."""
    factor, low = float(rotary["factor"]), float(rotary["low_freq_factor"])
    high, positions = float(rotary["high_freq_factor"]), int(rotary["original_max_position_embeddings"])
    frequencies = float(rotary["rope_theta"]) ** -(torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    lengths = 2 * math.pi / frequencies
    smooth = ((positions / lengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).float()
