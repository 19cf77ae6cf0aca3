"""Models whose layers have widths or bases of their own: what config.json says, and stock layers built to it.

Stock classes build every layer alike. Where layers differ, config.json keeps the widths of the uncut model
(so that it stays valid) and adds `resprout_layout`: for each layer its FFN channels, key-value heads, query
heads and experts, 0 where a sublayer is missing; and `turned` where the sublayers are rotated. A stock class
that loads such a folder stops at the shapes (where sublayers are missing or rotated the FFN's width in
config.json is one that no layer has, so that it does); `load_model` takes the stock class with each such
layer built by its own constructor from a config with the layer's widths. Where that config has no head_dim, a
layer is built with all heads and its attention cut.

Rotated layers (SliceGPT, arXiv 2401.15024, sec. 3.3): where each sublayer reads and writes the residual
stream in a basis of its own, the stream must be brought from the basis that a sublayer read to the one that
it writes: x -> T_a x + attention(norm(x)) and y -> T_f y + ffn(norm(y)), T_a and T_f [hidden, hidden]. No
stock class has these; a layer here is the stock one with both as modules `attention_turn` and `ffn_turn` and
a forward that uses them.

What is built of a layer is one entry, by `modeling_resprout.py`, which knows no family: with the entries in
config.json it does the same where resprout is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from resprout.tasks.models import modeling_resprout
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.families.family import Config, Family, Tensors, is_norm
from resprout.tasks.models.modeling_resprout import LAYERS_KEY, stand_in
from resprout.tasks.models.shape import ROTATED_KEY, Model, Shape, Sublayer, Widths, shape_of


def layout_of(config: Any) -> Shape | None:
    """The shape of a transformers config with a layout, None where all layers are alike."""
    return shape_of(config.to_dict()) if getattr(config, LAYOUT_KEY, None) is not None else None


def to_layout(shape: Shape) -> dict[str, list[int] | bool]:
    """The value of `resprout_layout` in config.json."""
    experts = {"num_experts": list(shape.experts)} if shape.experts else {}
    return {
        "intermediate_size": list(shape.ffn),
        "num_key_value_heads": list(shape.kv_heads),
        "num_attention_heads": list(shape.heads),
        **experts,
        **({ROTATED_KEY: True} if shape.rotated else {}),
    }


def write_shape(config: Any, shape: Shape) -> None:
    """Bring a transformers config in line with `shape`: by its own keys if they can say it, else a layout."""
    family, keys = shape.family, shape.family.keys
    setattr(config, keys.hidden, shape.hidden)
    setattr(config, keys.layers, shape.layers)
    if shape.stock:
        _set_widths(config, family, shape.widths(0), shape.head_dim)
        if hasattr(config, LAYOUT_KEY):
            delattr(config, LAYOUT_KEY)
    else:
        setattr(config, LAYOUT_KEY, to_layout(shape))
        if 0 in (*shape.ffn, *shape.kv_heads) or shape.rotated:
            # Stock code would fill a missing sublayer at random, or leave rotations out. No layer is as wide
            # as this, so it stops.
            setattr(config, keys.ffn, max(shape.ffn) + 1)


def cut_class(stock: type[Model]) -> type[Model]:
    """A class of the stock class's name whose layers are as wide as `config.resprout_layout` says."""
    if getattr(stock, modeling_resprout.CUT, False):
        return stock

    def layers(config: Any) -> dict[str, Any] | None:
        shape = layout_of(config)
        return to_layers(config, shape) if shape is not None else None

    cut: type[Model] = modeling_resprout.cut_class(stock, layers, stock.__module__)
    return cut


def to_layers(config: Any, shape: Shape) -> dict[str, Any]:
    """The value of `resprout_layers` in config.json, by which modeling_resprout.py builds the layers."""
    family = shape.family
    entries = [_entry(config, shape, index) for index in range(shape.layers)]
    return {"path": f"{family.decoder}.{family.layers}", "layers": entries}


def without_code(config: Any) -> Any:
    """The config without what leads to code beside the weights, since `resprout_layout` says it all."""
    for key in (LAYERS_KEY, "auto_map"):
        if hasattr(config, key):
            delattr(config, key)
    return config


def build_layer(kind: Any, config: Any, shape: Shape, index: int) -> Any:
    """A decoder layer of class `kind` with the widths of layer `index`, its weights not yet set."""
    return modeling_resprout.build_layer(kind, config, _entry(config, shape, index), index)


def _entry(config: Any, shape: Shape, index: int) -> dict[str, Any]:
    """How layer `index` differs from the stock one of `config`; modeling_resprout.py names the parts."""
    widths, family = shape.widths(index), shape.family
    # A sublayer that will be taken away is built first, and as narrow as it can be.
    experts = max(widths.experts, int(bool(shape.experts)))
    shown = Widths(widths.ffn or 1, widths.kv_heads or 1, widths.heads_per_group or 1, experts)
    entry: dict[str, Any] = {"config": _widths(config, family, shown, shape.head_dim)}
    heads = widths.kv_heads * widths.heads_per_group
    if not family.states_heads and 0 < heads * shape.head_dim != shape.hidden:
        attention = family.attention(shape.config)
        entry["tensors"] = {name: list(shape.dims(axes, index)) for name, axes in attention.items()}
        entry["counts"] = {
            name: heads if what == "heads" else shape.axis(what, widths)
            for name, what in family.head_counts.items()
        }
    present: dict[Sublayer, int] = {"attention": widths.kv_heads, "ffn": widths.ffn}
    missing = {
        name: what
        for sublayer in (one for one, width in present.items() if not width)
        for name, what in _missing(shape, sublayer).items()
    }
    if missing:
        entry["missing"] = missing
    if shape.rotated:
        entry["rotation"] = sublayer_places(family, shape.config)
    return entry


@contextmanager
def without_sublayer(layer: Any, shape: Shape, sublayer: Sublayer) -> Iterator[None]:
    """Let a layer compute without one sublayer while the context is open."""
    missing = _missing(shape, sublayer)
    modules = {name: getattr(layer, name) for name in missing}
    for name, what in missing.items():
        setattr(layer, name, stand_in(what))
    try:
        yield
    finally:
        for name, module in modules.items():
            setattr(layer, name, module)


def _set_widths(config: Any, family: Family, widths: Widths, head_dim: int) -> None:
    for key, value in _widths(config, family, widths, head_dim).items():
        setattr(config, key, value)


def _widths(config: Any, family: Family, widths: Widths, head_dim: int) -> dict[str, int]:
    """The keys of a stock config that state these widths."""
    keys = family.keys
    stated = {keys.ffn: widths.ffn}
    if keys.kv_heads and keys.head_dim:
        stated[keys.kv_heads] = widths.kv_heads
        stated[keys.heads] = widths.kv_heads * widths.heads_per_group
        # Stock configs derive head_dim from hidden size and heads where it is not named.
        stated[keys.head_dim] = head_dim
    return stated | {key: widths.experts for key in keys.experts if hasattr(config, key)}


def _missing(shape: Shape, sublayer: Sublayer) -> dict[str, str]:
    """The modules of a missing sublayer, by names from the layer on, and what stands there."""
    family = shape.family
    names, tensors = {
        "attention": (family.attention_zeros, family.attention),
        "ffn": (family.ffn_zeros, family.ffn),
    }[sublayer]
    owners = (name.split(".")[0] for name in tensors(shape.config))
    return {name: "norm" for name in owners if family.norms(name)} | dict.fromkeys(names, sublayer)


def sublayer_places(family: Family, config: Config) -> dict[str, list[str]]:
    """Names of the norm in front of each sublayer and of its module, from the layer on."""
    return {
        "attention": [_norm(family.attention(config)), family.attention_zeros[0]],
        "ffn": [_norm(family.ffn(config)), family.ffn_zeros[0]],
    }


def _norm(tensors: Tensors) -> str:
    """The one norm over the hidden channels among these tensors."""
    (name,) = (one for one in tensors if is_norm(one, tensors))
    return name.removesuffix(".weight")
