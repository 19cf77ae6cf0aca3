"""Which weights of a layer become sparse, and whether a model can; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from resprout.configs.errors import BadInput
from resprout.configs.stages import SparsifyConfig
from resprout.tasks.models.size import TURNS, Shape
from resprout.tasks.sparsify.registry import METHODS


def sparse_weights(shape: Shape, layer: int) -> Iterator[tuple[str, int]]:
    """Names from the layer on, and the length of the inputs: all matrices of attention and FFN.

    Embeddings, head, norms, biases, routers, gates of one output and turns between bases stay dense.
    """
    for name, axes in shape.layer_tensors(shape.widths(layer)).items():
        if name in TURNS:
            continue
        if len(axes) > 2 or (len(axes) == 2 and axes[0] not in (1, "experts")):
            inputs = axes[0 if shape.family.transposed else -1]
            yield name, shape.axis(inputs, shape.widths(layer))


def check_sparsity(shape: Shape, config: SparsifyConfig) -> None:
    """Raise BadInput where the method or the pattern does not fit a model of this shape."""
    needs = METHODS.entry(config.method).declared["needs"]
    if shape.experts and needs != "weights":
        fitting = [entry.name for entry in METHODS if entry.declared["needs"] == "weights"]
        raise BadInput(
            f"sparsify.method '{config.method}' looks at what each matrix is given, which in a "
            f"{shape.model_type} model, inside experts, no module shows; give sparsify.method: "
            f"{' or '.join(fitting)}"
        )
    group = int(config.pattern.partition(":")[2])
    for layer in range(shape.layers):
        for name, inputs in sparse_weights(shape, layer):
            if inputs % group:
                raise BadInput(
                    f"sparsify.pattern {config.pattern} needs inputs in groups of {group}, but {name} of "
                    f"layer {layer} has {inputs}; give a prune.round_to that {group} divides, or no sparsify"
                )
