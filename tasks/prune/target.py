"""The size target: from a config to numbers, to widths where these need no scores, and warnings about it.

Arithmetic on the shape alone, without torch.

Layers at the front and at the back may keep their widths and drop out of the budget: LLM-Pruner (arXiv
2305.11627) and LoRAPrune (arXiv 2305.18403) leave the first and the last layers alone, which matter most.
Allocators are asked about the other layers only, so that this holds for every allocator of widths.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.presets import DEPTH, Unit
from resprout.configs.schema import PruneConfig, TargetConfig
from resprout.tasks.core.methods import Entry, Registry
from resprout.tasks.models.shape import BYTES, Shape, check_numbers, depth_units, without
from resprout.tasks.prune.compatibility import Resolved, resolve
from resprout.tasks.prune.interfaces import Allocator, Bench, Kinds, Request, Scores
from resprout.tasks.prune.registry import ALLOCATORS, CRITERIA, REPAIRS

FINENESS: Kinds = ("experts", "kv_groups", "heads", "hidden", "ffn")
"""Kinds of units from the coarsest to the finest."""
ROUNDING = 1e-9
"""Of a share of the depth, which may come out a hair beside a whole number."""
MISS = 0.01
"""Share of the model by which rounding may miss the target before that is reported."""


def implied_shape(
    dense: Shape, config: PruneConfig, dtype: str | None = None, there: Shape | None = None
) -> Shape | None:
    """The shape that pruning will reach, None where it depends on scores (widths that differ by layer).

    `there` is the shape that an earlier round of a schedule left. Whatever makes the target unreachable or
    the repair impossible for this model raises BadInput here, before any weight is read. `dtype` as of
    `request`.
    """
    wanted = request(dense, config, dtype)
    if ALLOCATORS.entry(resolve(config).allocator).declared["per_layer"]:
        return None
    if config.units[0] in DEPTH:
        return _fewer_layers(wanted) if config.units == ("layers",) and dense.uniform else None
    wanted = wanted if there is None else replace(wanted, shape=there)
    return joined(wanted, uniform_shape(within(wanted)))


def request(dense: Shape, config: PruneConfig, dtype: str | None = None) -> Request:
    """The target in numbers for this model; one that is out of reach raises BadInput.

    `dtype`, in which the weights are held, must be given where the target is in bytes.
    """
    if foreign := [unit for unit in config.units if unit not in dense.family.units]:
        raise BadInput(
            f"prune.units names {' and '.join(foreign)}, which a {dense.model_type} model cannot lose; it "
            f"can lose {', '.join(dense.family.units)}"
        )
    names = resolve(config)
    if REPAIRS.entry(names.repair).declared.get("alike_layers") and not dense.uniform:
        raise BadInput(
            f"repair '{names.repair}' adds layers up, but those of this model have different widths; give "
            "prune.repair: none"
        )
    if dense.experts and "ffn" in config.units:
        if config.schedule != "one_shot":
            raise BadInput(
                f"prune.schedule is {config.schedule}, but prune.units names ffn, which in a "
                f"{dense.model_type} model lie inside experts and go at once; give schedule: one_shot, or "
                "prune kv_groups"
            )
        _check_unread(dense, "criterion", CRITERIA, names.criterion)
        _check_unread(dense, "repair", REPAIRS, names.repair)
        _check_unread(dense, "allocator", ALLOCATORS, names.allocator)
    shape = with_repair(dense, config.units, names.repair)
    if dense.rotated:
        raise BadInput(
            "the model's sublayers have bases of their own (repair block_rotation), between which methods "
            "cannot compare; prune widths and layers first, and rotate last"
        )
    if config.layout == "uniform" and not dense.uniform:
        raise BadInput(
            "the model's layers already have different widths, which layout: uniform cannot keep; give "
            "prune.layout: per_layer"
        )
    if config.units[0] in DEPTH:
        check_numbers(dense)
    _check_present(dense, config.units)
    if config.layout == "uniform" and "kv_groups" in config.units and not dense.family.states_heads:
        raise BadInput(
            f"prune.units names kv_groups, but the config of a {dense.model_type} model shares the hidden "
            "size out among its heads, so that layout: uniform cannot state fewer; give prune.layout: "
            "per_layer, or units: [ffn]"
        )
    target = config.target
    if target.timed:
        check_timed(dense)
    limit = limit_params(dense, target, dtype)
    apart = target.non_embedding_ratio is not None or target.non_embedding_params is not None
    wanted = Request(
        shape,
        limit,
        config.units,
        config.round_to,
        uniform=config.layout == "uniform",
        embedding_params=dense.embedding_params if apart else None,
        free=_free(dense, config, names),
        floors=_floors(dense, config),
    )
    _check_reachable(wanted, dense)
    return wanted


def _free(dense: Shape, config: PruneConfig, names: Resolved) -> range | None:
    """The layers that may get narrower, None where these are all."""
    free = range(dense.layers)
    if names.spared_front or names.spared_back:
        free = free_layers(names.spared_front, names.spared_back, dense.layers)
    widths = [kind for kind in config.units if kind not in (*DEPTH, "hidden")]
    differ = any(len(set(dense.counts(kind)[free.start : free.stop])) > 1 for kind in widths)
    if differ and names.allocator == "uniform":
        raise BadInput(
            "prune.allocator 'uniform' gives all layers the same width, but those of this model that may get "
            "narrower differ already; give allocator: global_standardised"
        )
    return None if len(free) == dense.layers else free


def _floors(dense: Shape, config: PruneConfig) -> dict[Unit, tuple[int, ...]]:
    """Units that every layer keeps for `min_kept_ratio`; nothing where it is 0."""
    kinds = [kind for kind in config.units if config.min_kept_ratio and kind not in (*DEPTH, "hidden")]
    ratio = config.min_kept_ratio
    return {kind: tuple(math.ceil(ratio * count) for count in dense.counts(kind)) for kind in kinds}


def _check_unread(dense: Shape, part: str, registry: Registry[Any], name: str) -> None:
    """Raise BadInput where a method needs the module that reads FFN channels, which experts do not have."""
    able = [entry.name for entry in registry if _unread(part, entry)]
    if name not in able:
        raise BadInput(
            f"{part} '{name}' looks at what reads FFN channels, which in a {dense.model_type} model, inside "
            f"experts, no one module does; give prune.{part}: {' or '.join(able)}"
        )


def _unread(part: str, entry: Entry) -> bool:
    """Whether a method leaves alone what reads units; one that can score or repair experts does."""
    if part == "allocator":
        return not entry.declared.get("narrows") and "ffn" in entry.declared.get("units", ("ffn",))
    return {"ffn", "experts"} <= set(entry.declared.get("units", ()))


def _check_present(dense: Shape, kinds: Kinds) -> None:
    for kind in (kind for kind in kinds if kind not in DEPTH):
        widths = dense.ffn if kind in ("ffn", "experts") else dense.kv_heads
        if 0 in widths:
            raise BadInput(
                f"prune.units names {kind}, but layer {widths.index(0)} of the model has lost that sublayer; "
                "prune widths first, then sublayers"
            )


def check_timed(dense: Shape) -> None:
    """Raise BadInput unless one layer's times stand for all."""
    if not dense.uniform or dense.experts:
        raise BadInput(
            "prune.target is a latency, which needs a dense model whose layers are alike, and this one "
            f"{'has experts' if dense.experts else 'has layers that differ'}; give params_ratio"
        )


def limit_params(dense: Shape, target: TargetConfig, dtype: str | None = None) -> int:
    """The largest number of unique parameters that meets the target; a latency sets no bound to them."""
    if target.timed:
        return dense.params
    if target.bytes is not None:
        if dtype is None:
            raise TypeError("a target in bytes needs a dtype")
        return target.bytes // BYTES[dtype]
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

    With one kind of unit that is the largest allowed number of them. With several, each kind keeps about
    the same share: the coarse kinds take the allowed numbers nearest to that share, and the finest takes
    what is left, FFN channels rounded down to a multiple of `round_to`.
    """
    shape = wanted.shape
    *coarse, fine = sorted(wanted.kinds, key=FINENESS.index)
    share = kept_share(wanted)

    def distance(counts: tuple[int, ...]) -> tuple[float, ...]:
        far = [abs(count / shape.counts(kind)[0] - share) for kind, count in zip(coarse, counts, strict=True)]
        return (sum(far), *(-count for count in counts))

    for counts in sorted(product(*(allowed(wanted, kind) for kind in coarse)), key=distance):
        cut = shape
        for kind, count in zip(coarse, counts, strict=True):
            cut = cut.with_counts(kind, (count,) * shape.layers)
        for count in allowed(wanted, fine):
            reached = cut.with_counts(fine, (count,) * shape.layers)
            if stock_heads(wanted, reached) and wanted.fits(reached):
                return reached
    raise _unreachable(wanted, _smallest(wanted).params)


def allowed(wanted: Request, kind: Unit) -> list[int]:
    """Allowed numbers of units of a layer where all are alike, largest first, the present one among them."""
    shape = wanted.shape
    present = shape.counts(kind)[0]
    low = max(least(wanted, kind, layer) for layer in range(shape.layers))
    if kind in ("ffn", "hidden"):
        multiples = range(present // wanted.round_to * wanted.round_to, 0, -wanted.round_to)
        return [present, *(multiple for multiple in multiples if low <= multiple != present)]
    return [*range(present, low - 1, -1)]


def least(wanted: Request, kind: Unit, layer: int) -> int:
    """Units of `kind` that a layer keeps in any case: as many experts as a token goes to, one of all others.

    And as many as the request's floors say.
    """
    floors = wanted.floors.get(kind)
    works = int(wanted.shape.config.get("num_experts_per_tok") or 1) if kind == "experts" else 1
    return max(works, floors[layer] if floors else 0)


def stock_heads(wanted: Request, shape: Shape) -> bool:
    """Whether the family's stock config can state the number of heads, where that was asked for."""
    restricted = wanted.uniform and shape.family.heads_divide_hidden
    same = (shape.heads[0], shape.hidden) == (wanted.shape.heads[0], wanted.shape.hidden)
    return not restricted or same or shape.hidden % shape.heads[0] == 0


def block_sizes(width: int, round_to: int) -> list[int]:
    """`width` as blocks of `round_to`, the last one smaller where it does not divide."""
    whole, rest = divmod(width, round_to)
    return [round_to] * whole + ([rest] if rest else [])


def with_repair(dense: Shape, kinds: Kinds, repair: str) -> Shape:
    """The uncut shape with what a repair adds: biases, a head of its own where it was tied, or rotations."""
    declared = REPAIRS.entry(repair).declared
    if declared.get("adds_biases"):
        dense = with_biases(dense, kinds)
    if declared.get("unties_head"):
        dense = replace(dense, config={**dense.config, "tie_word_embeddings": False})
    if declared.get("rotates_blocks"):
        dense = replace(dense, rotated=True)
    return dense


def with_biases(dense: Shape, kinds: Kinds) -> Shape:
    """The shape with the biases that `repair: bias` adds; a family that cannot hold them raises BadInput."""
    family = dense.family
    config, lacks = dict(dense.config), []
    tensors = dense.layer_tensors(dense.widths(0))
    for kind, key, reader in (
        ("ffn", family.ffn_bias_key, family.ffn_reader),
        ("kv_groups", family.attention_bias_key, family.attention_reader),
        ("heads", family.attention_bias_key, family.attention_reader),
    ):
        if kind not in kinds or f"{reader}.bias" in tensors:
            continue
        if key is None:
            lacks.append(kind)
        else:
            config[key] = True
    if lacks:
        raise BadInput(
            f"repair 'bias' needs an output bias, which stock {family.model_type} models lack for "
            f"{' and '.join(lacks)}; give prune.repair: least_squares or none"
        )
    return replace(dense, config=config)


def removable_params(wanted: Request) -> int:
    """Parameters that belong to units of the kinds that may go."""
    shape = wanted.shape
    return sum(
        count * shape.unit_params(kind, layer)
        for kind in wanted.kinds
        for layer, count in enumerate(shape.counts(kind))
    )


def kept_share(wanted: Request) -> float:
    """The share of the removable parameters that the limit lets stay."""
    if "hidden" in wanted.kinds:
        # Channels and other units share parameters, so that the size is no linear function of the share.
        steps = range(1, 1000)
        return bisect_left(steps, True, key=lambda step: not wanted.fits(_scaled(wanted, step))) / 1000
    removable = removable_params(wanted)
    return (wanted.limit - (wanted.shape.params - removable)) / removable


def _fewer_layers(wanted: Request) -> Shape:
    """The shape that stays of layers that are all alike: scores decide only which of them."""
    found = list(depth_units(wanted.shape, "layers"))
    fits = (n for n in range(len(found)) if without(wanted.shape, found[:n]).params <= wanted.limit)
    kept = range(next(fits), wanted.shape.layers)
    return wanted.shape.with_layers(kept)


def _smallest_depth(wanted: Request) -> Shape:
    """The largest layer alone, so that every order of scores can reach it; or all that must stay."""
    shape, (kind,) = wanted.shape, wanted.kinds
    removable = list(depth_units(shape, kind))
    if kind == "layers":
        largest = max(range(shape.layers), key=lambda layer: shape.layer_params(shape.widths(layer)))
        removable = [block for block in removable if block.layer != largest]
    return without(shape, removable)


def _scaled(wanted: Request, thousandths: int) -> Shape:
    """The shape with that share of each kind of unit."""
    shape = wanted.shape
    for kind in wanted.kinds:
        counts = [max(1, count * thousandths // 1000) for count in wanted.shape.counts(kind)]
        shape = shape.with_counts(kind, counts)
    return shape


def _smallest(wanted: Request) -> Shape:
    shape = wanted.shape
    if wanted.kinds[0] in DEPTH:
        return _smallest_depth(wanted)
    for kind in wanted.kinds:
        lows = [least(wanted, kind, layer) for layer in range(shape.layers)]
        if kind in ("ffn", "hidden"):
            whole = [math.ceil(low / wanted.round_to) * wanted.round_to for low in lows]
            lows = [min(pair) for pair in zip(shape.counts(kind), whole, strict=True)]
        shape = shape.with_counts(kind, lows)
    if not stock_heads(wanted, shape):
        free: Kinds = tuple(k for k in wanted.kinds if k in ("hidden", "kv_groups", "heads"))
        found = [shape]
        for kind in free:
            found = [
                one.with_counts(kind, (count,) * shape.layers)
                for one in found
                for count in allowed(wanted, kind)
            ]
        shape = min((one for one in found if stock_heads(wanted, one)), key=lambda one: one.params)
    return shape


def _check_reachable(wanted: Request, dense: Shape) -> None:
    if wanted.limit > dense.params:
        raise BadInput(
            f"prune.target asks for {wanted.limit} parameters, but the model has {dense.params}; give a "
            "smaller target"
        )
    smallest = joined(wanted, _smallest(within(wanted)))
    if not wanted.fits(smallest):
        raise _unreachable(wanted, smallest.params)


def _unreachable(wanted: Request, smallest: int) -> BadInput:
    dense = wanted.shape
    if wanted.kinds[0] in DEPTH:
        return BadInput(
            f"prune.target allows {wanted.limit} parameters, but removing {wanted.kinds[0]} reaches "
            f"{smallest} ({smallest / dense.params:.3f} of the model) at best; raise the target, or prune "
            "widths"
        )
    remedies = ["raise the target"]
    free = [kind for kind in reversed(FINENESS) if kind in dense.family.units and kind not in wanted.kinds]
    more = [kind for kind in free if _possible(wanted, kind)]
    remedies += [
        f"add {kind} to prune.units, with a method that can (resprout methods --units {kind})"
        for kind in more
    ]
    remedies += ["lower round_to"] * ("ffn" in wanted.kinds and wanted.round_to > 1)
    remedies += ["spare fewer layers"] * (wanted.free is not None)
    remedies += ["lower min_kept_ratio"] * bool(wanted.floors)
    return BadInput(
        f"prune.target allows {wanted.limit} parameters, but removing {' and '.join(wanted.kinds)} with "
        f"round_to {wanted.round_to} reaches {smallest} ({smallest / dense.params:.3f} of the model) at "
        f"best; {' or '.join(remedies)}"
    )


def _possible(wanted: Request, kind: Unit) -> bool:
    """Whether the layout allows units of this kind."""
    return kind != "hidden" if not wanted.uniform else kind != "kv_groups" or wanted.shape.family.states_heads


def free_layers(front: float, back: float, layers: int) -> range:
    """The layers that may get narrower, by their place.

    Each end is a number of layers, or a share of the depth below 1: rounded down at the front and up at the
    back, as LLM-Pruner's 4 to 30 of 32 scale to other depths. Where none is left, BadInput.
    """
    first = math.floor(front * layers + ROUNDING) if 0 < front < 1 else int(front)
    last = math.ceil(back * layers - ROUNDING) if 0 < back < 1 else int(back)
    if first + last >= layers:
        raise BadInput(
            f"prune.spared_front and spared_back spare {first} and {last} of {layers} layers, so that none "
            "is left; give fewer"
        )
    return range(first, layers - last)


def within(request: Request) -> Request:
    """The same request for its free layers alone: what the others hold is spent already."""
    if request.free is None:
        return request
    shape, free = request.shape, request.free
    held = sum(shape.layer_params(shape.widths(layer)) for layer in range(shape.layers) if layer not in free)
    floors = {kind: counts[free.start : free.stop] for kind, counts in request.floors.items()}
    limit = request.limit - held
    return replace(request, shape=shape.with_layers(free), limit=limit, floors=floors, free=None)


def joined(request: Request, granted: Shape) -> Shape:
    """The request's shape with the widths that its free layers were granted."""
    if request.free is None:
        return granted
    free = request.free
    return request.shape.with_widths(
        (granted.widths(layer - free.start) if layer in free else request.shape.widths(layer))
        for layer in range(request.shape.layers)
    )


def allocate(allocator: Allocator, request: Request, scores: Scores, bench: Bench | None) -> Shape:
    """The shape with what the allocator grants the free layers; the others stay whole."""
    if request.free is None:
        return allocator.allocate(request, scores, bench)
    free = request.free
    looked_at = None if bench is None else replace(bench, layers=free)
    granted = allocator.allocate(within(request), scores[free.start : free.stop], looked_at)
    return joined(request, granted)


def warnings_for(
    dense: Shape, wanted: Request, target: TargetConfig, reached: Shape | None = None, alike: bool = True
) -> list[str]:
    """Sentences about a target that will likely gut the model, or that rounding misses by more than MISS.

    `reached` is the shape that the target led to, None: it is not known yet; `alike` says whether all its
    layers that may get narrower were given the same widths.
    """
    missed = [] if reached is None or target.timed or target.whole else _missed(dense, wanted, reached, alike)
    return [*gutted(dense, wanted, target), *missed]


def _missed(dense: Shape, wanted: Request, reached: Shape, alike: bool) -> list[str]:
    """The reachable sizes next to the target, where rounding misses it by more than MISS of the model."""
    apart = wanted.embedding_params is not None

    def share(shape: Shape) -> float:
        if apart:
            return shape.non_embedding_params / dense.non_embedding_params
        return shape.params / dense.params

    whole = dense.non_embedding_params if apart else dense.params
    asked = (wanted.limit - (wanted.embedding_params or 0)) / whole
    larger = [(kind, one) for kind, one in _next_larger(wanted, reached, alike) if not wanted.fits(one)]
    if asked - share(reached) <= MISS or not larger:
        return []
    kind, above = min(larger, key=lambda one: one[1].params)
    spared = "" if wanted.free is None else " that may get narrower"
    if kind in DEPTH:
        below, more, unit = _layers(reached), _layers(above), "layers"
    elif alike or kind == "hidden":
        below, more = (one.counts(kind)[wanted.free_range.start] for one in (reached, above))
        unit = "hidden channels" if kind == "hidden" else f"{kind} in each layer{spared}"
    else:
        below, more, unit = sum(reached.counts(kind)), sum(above.counts(kind)), f"{kind} in all layers"
    of = " without embeddings" if apart else ""
    # Rounded up, so that asking for it takes it.
    over = math.ceil(share(above) * 1000) / 1000
    remedy = f", or lower round_to ({wanted.round_to})" if kind in ("ffn", "hidden") else ""
    return [
        f"prune.target asks for {asked:.3f} of the parameters{of}, which no allowed size comes near: the "
        f"nearest sizes are {share(reached):.3f} below ({below:,} {unit}) and {over:.3f} above ({more:,}); "
        f"the one below is taken; ask for {over:.3f} to take the other{remedy}"
    ]


def _next_larger(wanted: Request, reached: Shape, alike: bool) -> Iterator[tuple[Unit, Shape]]:
    """The shapes a step of one kind of unit above: in every layer, or in one where they differ."""
    shape = wanted.shape
    if wanted.kinds[0] in DEPTH:
        if wanted.kinds == ("layers",) and shape.uniform and _layers(reached) < shape.layers:
            yield "layers", shape.with_layers(range(_layers(reached) + 1))
        return
    for kind in wanted.kinds:
        counts, free = reached.counts(kind), wanted.free_range
        for widened in [free] if alike or kind == "hidden" else [range(at, at + 1) for at in free]:
            more = [_step(wanted, kind, at, one) if at in widened else one for at, one in enumerate(counts)]
            larger = reached.with_counts(kind, more)
            if more != list(counts) and stock_heads(wanted, larger):
                yield kind, larger


def _layers(shape: Shape) -> int:
    """Layers of which something is left."""
    return sum(any(widths) for widths in zip(shape.ffn, shape.kv_heads, strict=True))


def _step(wanted: Request, kind: Unit, layer: int, count: int) -> int:
    """The next number of units above `count` in a layer, or all that it has."""
    step = wanted.round_to if kind in ("ffn", "hidden") else 1
    return min(wanted.shape.counts(kind)[layer], (count // step + 1) * step)


def gutted(dense: Shape, wanted: Request, target: TargetConfig) -> list[str]:
    """A sentence where a target in all parameters would take most of the layers of a model."""
    kept = (wanted.limit - dense.embedding_params) / dense.non_embedding_params
    total = any(one is not None for one in (target.params, target.params_ratio, target.bytes))
    if total and kept < 0.5 and "hidden" not in wanted.kinds:
        share = dense.embedding_params / dense.params
        return [
            f"embeddings hold {share:.0%} of the parameters and are not pruned, so this target leaves "
            f"{kept:.0%} of the layers' parameters; non_embedding_ratio states the target without them"
        ]
    return []
