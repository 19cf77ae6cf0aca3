"""Description of a model family: its tensors with named axes, its modules, its config keys; imports no torch.

An axis is a whole number, or one of

    hidden, vocab, head_dim, experts   of the whole model or layer
    query, key, value                  heads * head_dim, KV heads * head_dim (twice)
    ffn                                FFN channels (of each expert, where there are experts)
    qkv_by_head                        for each head its query, key and value rows, one after another

or some of them joined by +, one after another in one tensor ("query+key+value" of a fused projection).
Sizes, and which slices of which tensors leave with a unit, all follow from the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.presets import Unit

Config = Mapping[str, Any]
"""A config.json."""
Axes = tuple[int | str, ...]
Tensors = Mapping[str, Axes]
"""Names of tensors and their axes, in torch's order of dimensions."""

DENSE: tuple[Unit, ...] = ("ffn", "kv_groups", "heads", "hidden", "layers", "sublayers")
"""Units of a dense family whose config states head_dim apart from the hidden size."""
SCALED: tuple[Unit, ...] = ("ffn", "kv_groups", "heads", "layers", "sublayers")
"""The same where embeddings are scaled by the hidden size, which can then not change."""
SHARED_HEADS: tuple[Unit, ...] = ("ffn", "kv_groups", "layers", "sublayers")
"""Units of a family whose stock config has no head_dim but shares the hidden size out among the heads: fewer
heads need a layout of their own (tasks/models/layouts.py)."""
FIXED_HEADS: tuple[Unit, ...] = ("ffn", "layers", "sublayers")
"""Units of a family whose norms run over all heads, so that none can go alone."""
SPARSE: tuple[Unit, ...] = ("ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers")
"""Units of a mixture of experts."""


@dataclass(frozen=True)
class Keys:
    """Keys of config.json for the widths; None where it has no such key, several where releases differ."""

    hidden: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    ffn: str = "intermediate_size"
    experts: tuple[str, ...] = ()
    positions: str = "max_position_embeddings"


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    `attention` and `ffn` give the tensors of a layer's two sublayers with their norms, named from the layer
    on; `ends` those outside layers, by their whole names. `attention_reader` and `ffn_reader` are the modules
    whose weight reads the features that a sublayer's units make: [outputs, features], or the other way round
    where `transposed`. `attention_zeros` and `ffn_zeros` are the modules that return zeros where a sublayer
    was removed; its `norms` do nothing then. `head_counts` are attributes of a layer's modules that a stock
    class without a key for head_dim takes from the hidden size: number of heads, or an axis.
    `attention_bias_key` and `ffn_bias_key` are config keys that
    give *all* projections of a sublayer a bias (None: as it is), `norm_eps_key` the one with what norms add
    to the mean square. `parallel_key` is the config key (True where it is left out) under which both
    sublayers read the layer's input, `numbered_key` one under which a layer computes with its number.
    `gguf` is llama.cpp's name for the family, None where it has none; with `rotary_pairs` its rotary
    embedding turns neighbouring channels, where transformers turns those half a head apart.
    """

    model_type: str
    attention: Callable[[Config], Tensors]
    ffn: Callable[[Config], Tensors]
    ends: Callable[[Config], Tensors]
    attention_reader: str = "self_attn.o_proj"
    ffn_reader: str = "mlp.down_proj"
    attention_zeros: tuple[str, ...] = ("self_attn",)
    ffn_zeros: tuple[str, ...] = ("mlp",)
    norms: Callable[[str], bool] = field(default=lambda name: "norm" in name)
    head_counts: Mapping[str, str] = field(default_factory=dict)
    decoder: str = "model"
    layers: str = "layers"
    units: tuple[Unit, ...] = DENSE
    keys: Keys = Keys()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    attention_bias_key: str | None = None
    ffn_bias_key: str | None = None
    parallel_key: str | None = None
    numbered_key: str | None = None
    heads_divide_hidden: bool = False
    norm_offset: float = 0.0
    norm_eps_key: str = "rms_norm_eps"
    transposed: bool = False
    gguf: str | None = None
    rotary_pairs: bool = False
    check: Callable[[Config], str] = field(default=lambda config: "")

    @property
    def layer_prefix(self) -> str:
        """The part of tensors' names before the number of their layer."""
        return f"{self.decoder}.{self.layers}."

    @property
    def states_heads(self) -> bool:
        """Whether the stock config can state fewer heads of the same size."""
        return self.keys.head_dim is not None

    def parallel(self, config: Config) -> bool:
        """Whether both sublayers read the layer's input and are added to it side by side."""
        return self.parallel_key is not None and bool(config.get(self.parallel_key, True))


def linear(name: str, outputs: int | str, inputs: int | str, bias: bool = False) -> Tensors:
    """Weight and bias of an nn.Linear."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def conv1d(name: str, outputs: int | str, inputs: int | str) -> Tensors:
    """Weight and bias of transformers' Conv1D, whose weight is [inputs, outputs]."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def rms_norm(name: str, axis: str = "hidden") -> Tensors:
    """Weight of an RMSNorm."""
    return {f"{name}.weight": (axis,)}


def layer_norm(name: str) -> Tensors:
    """Weight and bias of an nn.LayerNorm."""
    return {f"{name}.weight": ("hidden",), f"{name}.bias": ("hidden",)}


def attention(config: Config, bias_key: str = "", qkv_bias: bool = False, qk_norm: bool = False) -> Tensors:
    """Four separate projections below `self_attn`, as Llama and most decoders since have them.

    `bias_key` is the config key that gives all of them a bias, `qkv_bias` gives one to all but the last.
    """
    bias = bool(config.get(bias_key))
    norms = {**rms_norm("self_attn.q_norm", "head_dim"), **rms_norm("self_attn.k_norm", "head_dim")}
    return {
        **linear("self_attn.q_proj", "query", "hidden", qkv_bias or bias),
        **linear("self_attn.k_proj", "key", "hidden", qkv_bias or bias),
        **linear("self_attn.v_proj", "value", "hidden", qkv_bias or bias),
        **linear("self_attn.o_proj", "hidden", "query", bias),
        **(norms if qk_norm else {}),
        **rms_norm("input_layernorm"),
    }


def gated_ffn(config: Config, bias_key: str = "") -> Tensors:
    """Gate, up and down below `mlp`, with a bias where `bias_key` is set, and the norm in front of them."""
    bias = bool(config.get(bias_key))
    return {
        **linear("mlp.gate_proj", "ffn", "hidden", bias),
        **linear("mlp.up_proj", "ffn", "hidden", bias),
        **linear("mlp.down_proj", "hidden", "ffn", bias),
        **rms_norm("post_attention_layernorm"),
    }


def experts(config: Config) -> Tensors:
    """The fused experts and their router below `mlp`, and the norm in front of them."""
    return {
        "mlp.experts.gate_up_proj": ("experts", "ffn+ffn", "hidden"),
        "mlp.experts.down_proj": ("experts", "hidden", "ffn"),
        "mlp.gate.weight": ("experts", "hidden"),
        **rms_norm("post_attention_layernorm"),
    }


def ends(config: Config) -> Tensors:
    """Embeddings, the last norm, and the head where it is not tied."""
    return {"model.embed_tokens.weight": ("vocab", "hidden"), **rms_norm("model.norm"), **head(config)}


def head(config: Config) -> Tensors:
    """`lm_head`, empty where it is tied to the embeddings."""
    return {} if config.get("tie_word_embeddings") else linear("lm_head", "vocab", "hidden")


def is_norm(name: str, tensors: Tensors) -> bool:
    """Whether a tensor is the weight of a norm over the hidden channels."""
    return tensors[name] == ("hidden",) and name.endswith(".weight")
