"""Local reconstruction: part by part, the pruned model gives what the dense one gives (arXiv 2510.14444).

"A Free Lunch in LLM Compression: Revisiting Retraining after Pruning" (Wagner et al.): attention and FFN of a
layer, or the layer as a whole, are trained by themselves to give the dense model's residual stream on a few
rows, from the dense model's stream in front of them. No loss on tokens, no graph beyond a part: one layer of
each model is in memory, hidden states go to disk where they are many.

Defaults are those of the authors' code (ZIB-IOL/Free-Lunch-in-LLM-Compression at 601ea9e): all weights of
the part, mean squared error, AdamW without weight decay at 1e-5, a tenth of the steps up and then a line to
zero, 128 rows in steps of two, once, dense inputs; masters in float32 under autocast. Attention and FFN apart
is what the first version of the paper found best, later ones as good as any part with a nonlinearity. Differs
here: rows are those of the selection, where the paper takes C4 in windows of 2,048 tokens; dropout is off; a
part whose error grew keeps the weights that it had.

The paper zeroes weights. Where whole layers or sublayers are removed, a part also stands for those behind it:
its target is the stream in front of the next part that is left (and the first begins at the embeddings), so
that every part is given what the one before was trained to give. Where both sublayers read the layer's input
(GPT-NeoX) a layer is one part.

With `solver: closed_form` the matrix that reads a sublayer's features is solved by least squares against what
the dense one writes, as the repair `least_squares` does when a plan is applied; it makes up for what is cut
inside a sublayer, not for sublayers that are removed. The paper's single-matrix setting, which it found to
be the weakest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import get_linear_schedule_with_warmup

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.presets import Unit
from resprout.configs.schema import ReconstructConfig, RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.termination import deferred_termination
from resprout.tasks.data.response import collate
from resprout.tasks.models.anatomy import Layer, anatomy
from resprout.tasks.models.forward import LayerCall, LayerStep, call_layer, run_layerwise, watch
from resprout.tasks.models.layouts import without_sublayer
from resprout.tasks.models.load import load_for, without_room
from resprout.tasks.models.offload import ActivationOffload
from resprout.tasks.models.shape import SUBLAYERS, Model, Shape, Sublayer, shape_of
from resprout.tasks.prune.masking import Columns, read_masked
from resprout.tasks.prune.plan import PLAN_FILE, read_plan
from resprout.tasks.prune.repairs.least_squares import LeastSquares
from resprout.tasks.prune.statistics import Targets
from resprout.tasks.recover.done_parts import DoneParts
from resprout.tasks.recover.masked import hold_masked
from resprout.tasks.recover.training_data import Recovered, TrainingData

DECLARED = {"trains_alone": True}
"""It has no step whose examples processes could share out."""
READ: Mapping[Sublayer, Unit] = {"attention": "kv_groups", "ffn": "ffn"}
"""Units whose reader is the last matrix of a sublayer."""


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """Each part's weights trained or solved to give the dense part's output, one layer in memory.

    A history entry a part: its number, its `layer`, the tokens that it saw, and the share of the dense update
    that it misses, before and after.

    Raises:
        BadInput: models that do not correspond layer by layer, or dtype float16 on a CPU.
        StageFailed: a loss that is not finite.
    """
    if job.dtype == "float16" and job.device == "cpu":
        raise BadInput("recover cannot train in float16 on a CPU; set model.dtype: bfloat16")
    settings, uncut = job.config.reconstruct, shape_of(inputs["dense"])
    shape = shape_of(inputs["pruned"])
    parts = parts_of(shape, sources_of(uncut, shape, inputs), uncut.layers, settings)
    dense, model = (_opened(inputs[role], job) for role in ("dense", "pruned"))
    generator = np.random.default_rng(job.seed)
    batches = _drawn(data, settings, generator)
    columns = read_masked(inputs["pruned"])
    real = [real.to(job.device) for _, real in batches]
    with DoneParts.of(job.checkpoints, generator, len(parts)) as done, deferred_termination() as ending:
        work, before = _Reconstruction(job, model, columns, real, generator, done), len(done.entries)
        for number, entry in enumerate(work.of(dense, parts, [ids for ids, _ in batches]), 1):
            if number > before:
                job.watch(number, {name: entry[name] for name in ("error_before", "error_after")})
                progress(number, len(parts), "parts")
                done.save(len(parts), 0.0 if ending.asked else job.config.checkpoint_minutes)
            if ending.asked:
                break
        history = [{"step": place, **entry} for place, entry in enumerate(done.entries, 1)]
    return Recovered(model, history, _metrics(history, batches))


def sources_of(dense: Shape, pruned: Shape, inputs: Mapping[str, Path]) -> list[int]:
    """The dense model's layer behind each layer of the pruned one.

    Raises:
        BadInput: the hidden states of the two cannot be compared, or only a plan could say which layers are
            left, and there is none.
    """
    if dense.model_type != pruned.model_type or dense.hidden != pruned.hidden or pruned.rotated:
        raise BadInput(
            f"recover.method reconstruct compares hidden states, but the dense model is {dense.model_type} "
            f"of hidden size {dense.hidden} and the pruned one {pruned.model_type} of {pruned.hidden}"
            f"{' in another basis' if pruned.rotated else ''}; give another method (lora, full), or prune no "
            "hidden channels"
        )
    plan = read_plan(inputs["plan"]) if (inputs.get("plan", Path()) / PLAN_FILE).is_file() else None
    if plan is not None and plan.hidden is not None:
        raise BadInput(
            "recover.method reconstruct compares hidden states, but pruning turned or cut them (plan.json "
            "lists hidden channels); give another method (lora, full), or prune no hidden channels"
        )
    if dense.layers == pruned.layers:
        return list(range(dense.layers))
    if plan is None or len(plan.layers) != pruned.layers:
        raise BadInput(
            f"the pruned model has {pruned.layers} of {dense.layers} layers and "
            f"{'there is no plan' if plan is None else f'the plan keeps {len(plan.layers)}'}, so that "
            "recover.method reconstruct cannot know which they are; give the plan that the model was made "
            "by, or another method (lora, full)"
        )
    return [plan.source(layer) for layer in range(pruned.layers)]


class Part(NamedTuple):
    """Sublayers of one layer that are reconstructed together, between two places of the dense model's stream.

    Place 2 l is in front of attention of the dense layer l, place 2 l + 1 in front of its FFN.
    """

    layer: int
    source: int
    sublayers: tuple[Sublayer, ...]
    begin: int
    until: int


def parts_of(pruned: Shape, sources: Sequence[int], layers: int, settings: ReconstructConfig) -> list[Part]:
    """The parts of the pruned model in order; `layers` is the number of layers of the dense one."""
    found: list[Part] = []
    apart = _apart(pruned, settings)
    for layer, source in enumerate(sources):
        widths = pruned.widths(layer)
        there: dict[Sublayer, int] = {"attention": widths.kv_heads, "ffn": widths.ffn}
        present = tuple(one for one in SUBLAYERS if there[one])
        for group in [(one,) for one in present] if apart else [present]:
            begin = 2 * source + (SUBLAYERS.index(group[0]) if apart else 0)
            found.append(Part(layer, source, group, begin, begin + (1 if apart else 2)))
    if settings.solver == "closed_form":
        return found
    ends = [*(part.begin for part in found[1:]), 2 * layers]
    starts = [0, *(part.begin for part in found[1:])]
    return [
        part._replace(begin=begin, until=until)
        for part, begin, until in zip(found, starts, ends, strict=True)
    ]


def _apart(shape: Shape, settings: ReconstructConfig) -> bool:
    """Whether attention and FFN are parts of their own."""
    finest = settings.granularity == "sublayers" or settings.solver == "closed_form"
    return finest and not shape.family.parallel(shape.config)


def _opened(folder: Path, job: Job[RecoverConfig]) -> Model:
    return load_for(job if job.config.reconstruct.memory == "whole" else without_room(job), folder)


def _drawn(
    data: TrainingData, settings: ReconstructConfig, generator: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Ids and which of them are no padding, [rows, tokens] both: rows of like length side by side."""
    rows, held_out = data.rows, set(data.held_out)
    chosen = [row for row in generator.permutation(len(rows)).tolist() if row not in held_out]
    chosen = chosen[: settings.samples]
    order = sorted(chosen, key=lambda row: (len(rows[row]), row))
    size = settings.batch_rows
    made = (collate([rows[row] for row in order[at : at + size]]) for at in range(0, len(order), size))
    return [(one.input_ids, one.attention_mask.bool()) for one in made]


def _metrics(
    history: Sequence[Mapping[str, float]], batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    def mean(name: str) -> float:
        return sum(entry[name] for entry in history) / len(history)

    return {
        "recovery_rows": sum(len(ids) for ids, _ in batches),
        "recovery_tokens": sum(int(real.sum()) for _, real in batches),
        "recovery_parts": len(history),
        "recovery_parts_unchanged": sum(entry["error_after"] == entry["error_before"] for entry in history),
        "reconstruction_error_before": mean("error_before"),
        "reconstruction_error_after": mean("error_after"),
    }


class _Place(NamedTuple):
    """The dense model's stream at a place, and what each sublayer's reader just wrote where it is watched."""

    number: int
    step: LayerStep
    written: Mapping[Sublayer, ActivationOffload]


def _places(dense: Model, ids: Sequence[Tensor], apart: bool, watched: bool) -> Iterator[_Place]:
    """The places of the dense model's stream, one after another; those inside layers only where `apart`."""
    for step in run_layerwise(dense, ids):
        if step.index == 0:
            yield _Place(0, step, {})
        for group in (("attention",), ("ffn",)) if apart else (SUBLAYERS,):
            with ExitStack() as watching, _alone(step.layer, group):
                written = _watched(step, group, watching) if watched else {}
                step.run_all()
            yield _Place(2 * step.index + 1 + SUBLAYERS.index(group[-1]), step, written)


def _watched(
    step: LayerStep, group: Sequence[Sublayer], watching: ExitStack
) -> dict[Sublayer, ActivationOffload]:
    """The outputs of the readers of sublayers, batch by batch [tokens, outputs], once the step has run."""
    widths = step.layer.widths
    seen: dict[Sublayer, ActivationOffload] = {}
    for sublayer in group:
        if widths.kv_heads if sublayer == "attention" else widths.ffn:
            kept = seen[sublayer] = ActivationOffload(step.hidden.limit_bytes)

            def hook(module: Any, inputs: Any, output: Tensor, kept: ActivationOffload = kept) -> None:
                kept.append(output.flatten(0, -2))

            watching.callback(step.layer.reader(READ[sublayer]).register_forward_hook(hook).remove)
    return seen


@contextmanager
def _alone(layer: Layer, sublayers: Sequence[Sublayer]) -> Iterator[None]:
    """Let a layer compute with these sublayers alone, and have no parameters but theirs."""
    with ExitStack() as changes:
        for other in (one for one in SUBLAYERS if one not in sublayers):
            changes.enter_context(without_sublayer(layer.module, layer.shape, other))
        yield


@dataclass
class _Reconstruction:
    """One pass through both models; `real` says for each batch which tokens are no padding."""

    job: Job[RecoverConfig]
    model: Model
    columns: Columns
    real: list[Tensor]
    generator: np.random.Generator
    known: DoneParts

    def of(self, dense: Model, parts: Sequence[Part], ids: list[Tensor]) -> Iterator[dict[str, float]]:
        """Reconstruct all parts in place; an entry for each."""
        settings, left = self.job.config.reconstruct, deque(parts)
        layers = anatomy(self.model).layers
        apart = _apart(layers[0].shape, settings)
        given, calls = ActivationOffload(), dict[int, list[LayerCall]]()
        with ExitStack() as loaded:
            for place in _places(dense, ids, apart, settings.solver == "closed_form"):
                calls[place.step.index] = place.step.calls
                if left and left[0].until == place.number:
                    number, part = len(parts) - len(left), left.popleft()
                    layer = layers[part.layer]
                    if part.sublayers[0] == _first(layer):
                        loaded.enter_context(layer.loaded())
                    work = _Work(self, part, layer, given, place, calls[part.source])
                    if number < len(self.known.entries):
                        work.restore(self.known.weights(number))
                    else:
                        self.known.add(work.done(), work.weights())
                    yield self.known.entries[number]
                    if settings.inputs == "pruned":
                        given = work.outputs()
                    if not left or left[0].layer != part.layer:
                        layer.keep()
                        loaded.close()
                wanted = settings.inputs == "dense" and left and left[0].begin == place.number
                if place.number == 0 or wanted:
                    given = _copied(place.step.hidden)


def _first(layer: Layer) -> Sublayer:
    return "attention" if layer.widths.kv_heads else "ffn"


def _copied(states: ActivationOffload) -> ActivationOffload:
    copy = ActivationOffload(states.limit_bytes)
    for one in states:
        copy.append(one)
    return copy


@dataclass
class _Work:
    """One part with its inputs and its targets."""

    run: _Reconstruction
    part: Part
    layer: Layer
    given: ActivationOffload
    place: _Place
    calls: list[LayerCall]

    def done(self) -> dict[str, float]:
        """Reconstruct the part; its entry. Weights under which its error is larger are not kept."""
        config = self.run.job.config.reconstruct
        with _alone(self.layer, self.part.sublayers):
            parameters = dict(self.layer.module.named_parameters())
            old = {name: one.detach().clone() for name, one in parameters.items()}
            before = self.error()
            (self.descend if config.solver == "gradient" else self.solve)(parameters)
            after = self.error()
            if not after <= before:
                for name, one in parameters.items():
                    one.data.copy_(old[name])
                after = before
        tokens = sum(int(real.sum()) for real in self.run.real)
        return {
            "layer": self.part.layer,
            "tokens": tokens * (config.epochs if config.solver == "gradient" else 1),
            "error_before": before,
            "error_after": after,
        }

    def weights(self) -> dict[str, Any]:
        """The part's weights by their names in the layer."""
        with _alone(self.layer, self.part.sublayers):
            return dict(self.layer.module.named_parameters())

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights that were reconstructed before."""
        for name, one in self.weights().items():
            one.copy_(weights[name])

    @torch.no_grad()
    def error(self) -> float:
        """Squared distance of the part's outputs from their targets, as a share of that of its inputs."""
        missed, moved = 0.0, 0.0
        for batch, real in enumerate(self.run.real):
            wanted, given = self.place.step.hidden[batch][real].float(), self.given[batch][real].float()
            missed += (self.output(batch)[real].float() - wanted).square().sum().item()
            moved += (given - wanted).square().sum().item()
        return missed / max(moved, torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def outputs(self) -> ActivationOffload:
        """The part's outputs, batch by batch."""
        found = ActivationOffload(self.given.limit_bytes)
        with _alone(self.layer, self.part.sublayers):
            for batch in range(len(self.given)):
                found.append(self.output(batch))
        return found

    def output(self, batch: int) -> Tensor:
        """The part's output on a batch of its inputs."""
        return call_layer(self.layer.module, self.given[batch], self.calls[batch])

    def descend(self, parameters: Mapping[str, Any]) -> None:
        """Gradient steps on all parameters, float32 while they are trained."""
        job, config = self.run.job, self.run.job.config.reconstruct
        for one in parameters.values():
            one.data = one.data.float()
            one.requires_grad_(True)
        hold_masked(self.layer.module, self._masked(parameters))
        optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
        steps = config.epochs * len(self.given)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        scaler = torch.amp.GradScaler(job.device.partition(":")[0], enabled=job.dtype == "float16")
        dtype = getattr(torch, job.dtype)
        for _ in range(config.epochs):
            for batch in self.run.generator.permutation(len(self.given)).tolist():
                real = self.run.real[batch]
                with torch.autocast(real.device.type, dtype, enabled=dtype != torch.float32):
                    output = self.output(batch)
                loss = mse_loss(output[real].float(), self.place.step.hidden[batch][real].float())
                if not torch.isfinite(loss):
                    raise StageFailed(
                        f"the error of layer {self.part.layer} is not finite while it is reconstructed with "
                        f"learning_rate {config.learning_rate:g}; lower recover.reconstruct.learning_rate, "
                        "and check that the pruned model's own scores are finite"
                    )
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
        for one in parameters.values():
            one.requires_grad_(False)
            one.data = one.data.to(dtype)
            one.grad = None

    def solve(self, parameters: Mapping[str, Any]) -> None:
        """Least squares for the readers of the part's sublayers, masked columns left out."""
        masked = self._masked(parameters)
        for sublayer in self.part.sublayers:
            units = self.layer.units(READ[sublayer])
            name = f"{units.part.reader}.weight"
            stays = torch.ones(units.weight.shape[1], dtype=torch.bool)
            if name in masked:
                stays[masked[name][1]] = False
            if kept := stays.nonzero().flatten().tolist():
                columns = torch.tensor(kept, device=units.weight.device)
                solved = LeastSquares().solve(
                    units, columns, self.seen(sublayer, columns), self.run.job.config.reconstruct.ridge
                )
                weight = units.weight.clone()
                weight[:, columns] = solved.weight
                parameters[name].data.copy_(weight.T if units.part.transposed else weight)

    def seen(self, sublayer: Sublayer, columns: Tensor) -> Targets:
        """Sums over the inputs of a sublayer's reader, and over what the dense model's writes."""
        targets, written = Targets(len(columns)), self.place.written[sublayer]
        for batch, real in enumerate(self.run.real):
            rows = real.flatten()

            def see(features: Tensor, rows: Tensor = rows, batch: int = batch) -> None:
                targets.update(features[rows][:, columns], written[batch][rows])

            with watch(self.layer.reader(READ[sublayer]), see), torch.no_grad():
                self.output(batch)
        return targets

    def _masked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The masked columns of the part's parameters, by names from the layer on."""
        prefix = f"{self.layer.family.layer_prefix}{self.layer.index}."
        return {
            name: self.run.columns[prefix + name] for name in parameters if prefix + name in self.run.columns
        }
