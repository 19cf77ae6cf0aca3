"""What of a model adapters and `perp` train, and whether the model has it; imports no torch."""

from __future__ import annotations

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.models.shape import Shape


def matrices(shape: Shape, config: RecoverConfig) -> dict[str, int]:
    """Whole names of the matrices that get adapters, and the smaller side of each.

    Raises:
        BadInput: a target that the family does not have.
    """
    found: dict[str, int] = {}
    known: set[str] = set()
    for layer in range(shape.layers):
        tensors = shape.layer_tensors(shape.widths(layer))
        for name, _ in shape.matrices(layer):
            module = name.removesuffix(".weight")
            if module != name or config.lora.experts:
                known |= {module}
                if not config.lora.targets or any(ends_with(module, one) for one in config.lora.targets):
                    smaller = min(shape.dims(tensors[name], layer)[-2:])
                    found[f"{shape.family.layer_prefix}{layer}.{module}"] = smaller
    for key, named in (("targets", config.lora.targets), ("rank_pattern", config.lora.rank_pattern)):
        names = known if key == "targets" else found
        if lost := [one for one in named if not any(ends_with(name, one) for name in names)]:
            last = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
            raise BadInput(
                f"recover.lora.{key} names {', '.join(lost)}, but {shape.model_type} has no such matrix; "
                f"give some of {last}"
            )
    return found


def check_fits(config: RecoverConfig, shape: Shape, masked: bool = False) -> None:
    """Raise BadInput where the adapters that the section asks for do not go onto a model of this shape."""
    sizes = matrices(shape, config)
    for name, smaller in sizes.items():
        rank = next((r for end, r in config.lora.rank_pattern.items() if ends_with(name, end)), config.rank)
        if rank > smaller and config.lora.ranks != "cfsp":
            raise BadInput(
                f"recover.rank is {rank} for {name}, whose smaller side is {smaller}; give at most "
                f"{min(sizes.values())}, a smaller rank for it in recover.lora.rank_pattern, or leave it "
                "out of recover.lora.targets"
            )
    if config.lora.init == "olora" and shape.family.transposed:
        raise BadInput(
            f"recover.lora.init olora takes weights as [outputs, inputs], but {shape.model_type} has them "
            "the other way round, which peft does not turn; give pissa or corda"
        )
    if config.lora.experts and not any(is_fused(shape, name) for name in sizes):
        raise BadInput(
            f"recover.lora.experts is true, but {shape.model_type} has no fused experts among the targets; "
            "leave it out"
        )
    if config.lora.experts and config.dropout:
        raise BadInput(
            f"recover.lora.experts needs recover.dropout: 0, since peft puts no dropout in front of fused "
            f"experts, but it is {config.dropout:g}"
        )
    if config.lora.experts and masked:
        raise BadInput(
            "recover.lora.experts does not know which inputs of experts are masked between rounds of a "
            "prune.schedule; leave it out, or prune in one shot"
        )


def is_fused(shape: Shape, name: str) -> bool:
    """Whether a matrix is a parameter of its own, not the weight of a module."""
    ends = {one for one in shape.layer_tensors(shape.widths(0)) if not one.endswith((".weight", ".bias"))}
    return any(ends_with(name, one) for one in ends)


def ends_with(name: str, end: str) -> bool:
    """Whether the last parts of a dotted name are `end`."""
    return name == end or name.endswith(f".{end}")


def check_perp(config: RecoverConfig, shape: Shape) -> None:
    """Raise BadInput where a model of this shape has nothing of what `perp` is to train."""
    wanted = config.perp.train
    if "adapters" in wanted:
        check_fits(config, shape)
        return
    biases = any(name.endswith(".bias") for name, _ in shape.tensors())
    if not ("norms" in wanted or ("biases" in wanted and biases) or ("head" in wanted and not shape.tied)):
        raise BadInput(
            f"recover.perp.train is {', '.join(wanted)}, but this {shape.model_type} has no biases"
            f"{' and its head is tied to the embeddings' if shape.tied else ''}; add norms or adapters"
        )
