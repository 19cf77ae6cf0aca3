"""Layer-wise relevance from the logits (Yeom et al., arXiv 1912.08881; Hatefi et al., arXiv 2408.12568).

What a unit contributes to the logits of the tokens that do follow is shared out backwards, layer by layer, so
that every layer's shares add up to those logits. The rules are those for transformers of Achtibat et al.
(AttnLRP, arXiv 2402.05602), each an input times a gradient in which something is held constant:

- a linear layer: the 0-rule, input times gradient;
- a norm and an activation: what comes out over what goes in is held constant, so relevance passes on;
- a product of two (gate and up): half of the relevance to each;
- attention: the attention weights are held constant, so relevance goes through the values alone (the CP rule
  of Ali et al., arXiv 2202.07304, which leaves queries and keys without any).

A unit is worth the absolute relevance of its features, summed over the tokens of a sample and averaged over
samples, as the papers do with filters and the positions of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resprout.tasks.core.job import Progress
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.forward import BATCH_TOKENS
from resprout.tasks.prune.interfaces import Kinds, LayerScores, Model, Needs


class Relevance:
    """Relevance that flows back from the logits through a unit's features."""

    needs: ClassVar[Needs] = "model"
    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads")
    cost: ClassVar[str] = "a forward and a backward pass, of activations alone"

    def score_model(self, model: Model, kinds: Kinds, input_ids: Tensor, progress: Progress) -> LayerScores:
        """Mean over samples of |sum over tokens of relevance|: float32 [units, features per unit]."""
        layers = anatomy(model).layers
        readers = {name for layer in layers for kind in kinds if (name := layer.part(kind).reader)}
        sums: list[dict[str, Tensor]] = [{} for _ in layers]
        rows = max(1, BATCH_TOKENS // input_ids.shape[1])
        with explained(model):
            for done, ids in enumerate(input_ids.split(rows)):
                _explain(model, layers, readers, ids.to(model.device), sums)
                progress(min((done + 1) * rows, len(input_ids)), len(input_ids), "samples explained")
        return [
            {
                kind: units.by_unit(found[str(units.part.reader)] / len(input_ids))
                for kind in kinds
                for units in (layer.units(kind),)
            }
            for layer, found in zip(layers, sums, strict=True)
        ]


def _explain(
    model: Model, layers: tuple[Layer, ...], readers: set[str], ids: Tensor, sums: list[dict[str, Tensor]]
) -> None:
    """Add each reader's feature relevances for these samples to `sums`."""

    def see(found: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A hook that held the tensor it hangs on would keep the whole graph for good.
        values = inputs[0].detach()

        def keep(gradient: Tensor) -> None:
            shares = values.float() * gradient.float()
            # Some families flatten samples and tokens before their FFN.
            by_sample = shares.view(len(ids), -1, shares.shape[-1]).sum(dim=1)
            relevance = by_sample.abs().sum(dim=0)
            found[name] = found[name] + relevance if name in found else relevance

        inputs[0].register_hook(keep)

    with ExitStack() as hooks:
        for layer, found in zip(layers, sums, strict=True):
            for name in readers:
                hook = layer.module.get_submodule(name).register_forward_pre_hook(partial(see, found, name))
                hooks.callback(hook.remove)
        logits_of_what_follows(model, ids).backward()


def logits_of_what_follows(model: Model, ids: Tensor) -> Tensor:
    """Sum of the logits of the tokens that do follow, over all positions of `ids` [samples, tokens].

    Its graph begins at the embeddings, which require a gradient; no parameter does.
    """
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits
    return logits[:, :-1].gather(2, ids[:, 1:, None]).float().sum()


@contextmanager
def explained(model: Model) -> Iterator[None]:
    """Let a backward pass through `model` share out relevance, not gradients, while the context is open."""
    parts = anatomy(model)
    with ExitStack() as hooks, torch.enable_grad():
        for layer in parts.layers:
            for name, module in layer.module.named_modules():
                if any(True for _ in module.children()):
                    continue
                if parts.family.norms(name.rpartition(".")[2]) or not any(True for _ in module.parameters()):
                    hooks.callback(module.register_forward_hook(_pass_on).remove)
            for name, stays in _projections(layer):
                detach = partial(_only, stays)
                hooks.callback(layer.module.get_submodule(name).register_forward_hook(detach).remove)
            if _gated(layer):
                reader = layer.module.get_submodule(parts.family.ffn_reader)
                hooks.callback(reader.register_forward_pre_hook(_halve).remove)
        for module in parts.decoder.children():
            if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.Embedding):
                hooks.callback(module.register_forward_hook(_pass_on).remove)
        yield


def _pass_on(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """The output as the input times a constant, so that input times gradient is the same on both sides."""
    if not isinstance(output, Tensor) or not inputs or output.shape != inputs[0].shape:
        return output
    given = inputs[0]
    # Where nothing goes in, nothing is passed back.
    ratio = torch.where(given == 0, torch.zeros_like(given), output / given).detach()
    return given * ratio + (output - given * ratio).detach()


def _halve(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The reader's input made of two factors, each of which gets half of its relevance."""
    return (_Half.apply(inputs[0]), *inputs[1:])


class _Half(torch.autograd.Function):
    """The identity, whose gradient is half."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def _only(stays: Tensor, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The output, of which only the features `stays` are open to the backward pass."""
    return torch.where(stays.to(output.device), output, output.detach())


def _projections(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """Modules that make queries, keys or values, and which of their outputs are values: bool [outputs]."""
    shape, widths = layer.shape, layer.widths
    for name, axes in layer.family.attention(shape.config).items():
        out = axes[-1] if layer.family.transposed else axes[0]
        if name.endswith(".weight") and isinstance(out, str) and len(axes) == 2 and out != "hidden":
            marks = [torch.full((shape.axis(one, widths),), one == "value") for one in out.split("+")]
            if out == "qkv_by_head":
                each = (widths.heads_per_group + 1) * shape.head_dim
                head = [torch.zeros(each, dtype=torch.bool), torch.ones(shape.head_dim, dtype=torch.bool)]
                marks = head * widths.kv_heads
            yield name.removesuffix(".weight"), torch.cat(marks)


def _gated(layer: Layer) -> bool:
    """Whether the FFN's features are products of two projections."""
    writers = [
        str(axis).count("ffn")
        for name, axes in layer.family.ffn(layer.shape.config).items()
        if name.endswith(".weight") and not name.startswith(f"{layer.family.ffn_reader}.")
        for axis in axes
    ]
    return sum(writers) == 2
