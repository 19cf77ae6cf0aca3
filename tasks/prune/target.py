"""From a size target to widths, by arithmetic on the shape alone; imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace

from resprout.configs.errors import BadInput
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.contracts import Request
from resprout.tasks.prune.registry import ALLOCATORS
from resprout.tasks.prune.resolve import resolve


def implied_shape(dense: Shape, config: PruneConfig) -> Shape | None:
    """The shape that pruning will reach, None where it depends on scores (allocators that tell layers apart).

    Whatever makes the target unreachable or the repair impossible for this model raises BadInput here, before
    any weight is read.
    """
    wanted = request(dense, config)
    if ALLOCATORS.get(resolve(config).allocator).per_layer:
        return None
    return uniform_shape(wanted)


def request(dense: Shape, config: PruneConfig) -> Request:
    """The target in numbers for this model; one that is out of reach raises BadInput."""
    repair = resolve(config).repair
    shape = with_biases(dense, config) if repair == "bias" else dense
    if config.layout == "uniform" and not dense.uniform:
        raise BadInput(
            "the model's layers already have different widths, which layout: uniform cannot keep; give "
            "prune.layout: per_layer"
        )
    limit = limit_params(dense, config.target)
    wanted = Request(shape, limit, config.units, config.round_to, uniform=config.layout == "uniform")
    _check_reachable(wanted, dense)
    return wanted


def limit_params(dense: Shape, target: TargetConfig) -> int:
    """The largest number of unique parameters that meets the target."""
    if target.params is not None:
        return target.params
    if target.params_ratio is not None:
        return math.floor(dense.params * target.params_ratio)
    if target.non_embedding_params is not None:
        return dense.embedding_params + target.non_embedding_params
    return dense.embedding_params + math.floor(
        dense.non_embedding_params * (target.non_embedding_ratio or 1.0)
    )


def uniform_shape(wanted: Request) -> Shape:
    """The largest shape within the limit that has the same widths in every layer.

    With FFN channels alone (or KV groups alone) that is the largest allowed width. With both, each kind keeps
    about the same share: the number of groups is the allowed one nearest to that share, and the FFN takes
    what is left, rounded down to a multiple of `round_to`.
    """
    shape = wanted.shape
    layers = shape.layers
    both = len(wanted.kinds) == 2
    groups = _group_counts(wanted)
    if both:
        share = _kept_share(wanted)
        groups.sort(key=lambda count: (abs(count - share * shape.kv_heads[0]), -count))
    for count in groups:
        for width in _ffn_widths(wanted):
            cut = replace(shape, ffn=(width,) * layers, kv_heads=(count,) * layers)
            if cut.params <= wanted.limit:
                return cut
    raise _unreachable(wanted, _smallest(wanted).params)


def block_sizes(width: int, round_to: int) -> list[int]:
    """`width` as blocks of `round_to`, the last one smaller where it does not divide."""
    whole, rest = divmod(width, round_to)
    return [round_to] * whole + ([rest] if rest else [])


def with_biases(dense: Shape, config: PruneConfig) -> Shape:
    """The shape with the biases that `repair: bias` adds; a family that cannot hold them raises BadInput."""
    family = FAMILIES[dense.model_type]
    lacks = [
        unit
        for unit, key in (("ffn", family.ffn_bias_key), ("kv_groups", family.attention_bias_key))
        if unit in config.units and key is None
    ]
    if lacks:
        raise BadInput(
            f"repair 'bias' needs an output bias, which stock {family.model_type} models lack for "
            f"{' and '.join(lacks)}; give prune.repair: least_squares or none"
        )
    attention = "kv_groups" in config.units
    return replace(
        dense,
        ffn_bias=dense.ffn_bias or "ffn" in config.units,
        qkv_bias=dense.qkv_bias or attention,
        attention_out_bias=dense.attention_out_bias or attention,
    )


def warnings_for(dense: Shape, wanted: Request, target: TargetConfig) -> list[str]:
    """Sentences about a target that will likely gut the model."""
    kept = (wanted.limit - dense.embedding_params) / dense.non_embedding_params
    total = target.params is not None or target.params_ratio is not None
    if total and kept < 0.5:
        share = dense.embedding_params / dense.params
        return [
            f"embeddings hold {share:.0%} of the parameters and are not pruned, so this target leaves "
            f"{kept:.0%} of the layers' parameters; non_embedding_ratio states the target without them"
        ]
    return []


def _ffn_widths(wanted: Request) -> list[int]:
    """Allowed FFN widths of all layers, largest first; the present width is always one of them."""
    width = wanted.shape.ffn[0]
    if "ffn" not in wanted.kinds:
        return [width]
    multiples = range(width // wanted.round_to * wanted.round_to, 0, -wanted.round_to)
    return [width, *(multiple for multiple in multiples if multiple != width)]


def _group_counts(wanted: Request) -> list[int]:
    """Allowed numbers of KV groups of all layers, largest first."""
    shape = wanted.shape
    present = shape.kv_heads[0]
    if "kv_groups" not in wanted.kinds:
        return [present]
    restricted = FAMILIES[shape.model_type].heads_divide_hidden
    return [
        count
        for count in range(present, 0, -1)
        if not restricted or count == present or shape.hidden % (count * shape.heads_per_group) == 0
    ]


def _kept_share(wanted: Request) -> float:
    shape = wanted.shape
    removable = sum(shape.ffn) * shape.params_per_channel + sum(shape.kv_heads) * shape.params_per_group
    return (wanted.limit - (shape.params - removable)) / removable


def _smallest(wanted: Request) -> Shape:
    shape = wanted.shape
    ffn, kv_heads = shape.ffn, shape.kv_heads
    if "ffn" in wanted.kinds:
        ffn = tuple(min(width, wanted.round_to) for width in ffn)
    if "kv_groups" in wanted.kinds:
        fewest = _group_counts(wanted)[-1] if wanted.uniform else 1
        kv_heads = (fewest,) * shape.layers
    return replace(shape, ffn=ffn, kv_heads=kv_heads)


def _check_reachable(wanted: Request, dense: Shape) -> None:
    if wanted.limit > dense.params:
        raise BadInput(
            f"prune.target asks for {wanted.limit} parameters, but the model has {dense.params}; give a "
            "smaller target"
        )
    smallest = _smallest(wanted).params
    if smallest > wanted.limit:
        raise _unreachable(wanted, smallest)


def _unreachable(wanted: Request, smallest: int) -> BadInput:
    dense = wanted.shape
    remedies = ["raise the target"]
    remedies += [f"add {kind} to prune.units" for kind in ("ffn", "kv_groups") if kind not in wanted.kinds]
    remedies += ["lower round_to"] * ("ffn" in wanted.kinds)
    return BadInput(
        f"prune.target allows {wanted.limit} parameters, but removing {' and '.join(wanted.kinds)} with "
        f"round_to {wanted.round_to} reaches {smallest} ({smallest / dense.params:.3f} of the model) at "
        f"best; {' or '.join(remedies)}"
    )
