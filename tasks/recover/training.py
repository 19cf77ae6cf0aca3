"""The training loop, by accelerate: the steps of a recovery in their order, from a checkpoint on."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.termination import Termination, deferred_termination
from resprout.tasks.models.load import load_for, load_model, own_generator
from resprout.tasks.models.shape import BYTES, shape_of
from resprout.tasks.prune.masking import read_masked
from resprout.tasks.recover import checkpoint, sharding
from resprout.tasks.recover.batches import Batch, Layout, collate, dealt, keeps_apart, layouts
from resprout.tasks.recover.checkpoint import State
from resprout.tasks.recover.growth import Growth, grows
from resprout.tasks.recover.learner import Learner
from resprout.tasks.recover.on_policy import sampled
from resprout.tasks.recover.optimizers import optimizer_of
from resprout.tasks.recover.teacher_on_disk import Disk
from resprout.tasks.recover.teachers import Online, Teacher
from resprout.tasks.recover.training_data import TrainingData

PARTS = 2
"""On a CPU a step is computed in at least so many parts: small parts hold examples of like length."""
CPU_TOKENS = 2048
"""Places that a CPU computes at once; more are no faster and take memory."""
CPU_SEQUENCE = 256
"""Tokens of a packed sequence on a CPU, whose attention computes what it masks too."""
LOOKS = (2, 20)
"""Least and most looks at the held-out slice, the first before training and the last behind it."""
LOOK_SHARE = 0.06
"""Share of training's time that looks may take; a pass without gradients takes a third of a step's."""
REPLANNED, NO_CHANGE = 5, 0.03
"""Steps between two plans of a budget of seconds, and the relative change below which the plan stays."""
logger = logging.getLogger(__name__)


class Exploded(StageFailed):
    """The loss is not finite or has grown far beyond the first at a step, counted from 1."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Step(NamedTuple):
    """The examples of a step and where they are; `weight`: distillation's share, where not the section's."""

    data: TrainingData
    examples: Sequence[int]
    weight: float | None = None


class GivenUp(Exception):
    """A signal came within a step or a look, which is done anew when training goes on."""


class PartDone(Exception):
    """One of several processes has trained its part; the first of them goes on with the result."""


def trained(
    job: Job[RecoverConfig],
    inputs: Mapping[str, Path],
    data: TrainingData,
    progress: Progress,
    student: Callable[[Any], Any],
) -> tuple[Any, list[dict[str, float]]]:
    """The trained form of what `student` makes of the pruned model, and one history entry a step.

    A loss that explodes ends training with the weights of the last checkpoint, and fails without one.

    Raises:
        BadInput: float16 on a CPU; shares of parameters of which some inputs are masked.
        PartDone: in each but the first of several processes.
        StageFailed: a loss or a weight that is not finite, or a loss that grows at once.
    """
    if job.device == "cpu" and "float16" in (job.dtype, _precision(job)):
        raise BadInput("recover cannot train in float16 on a CPU; set model.dtype: bfloat16")
    shares = job.config.devices.shares
    if shares and read_masked(inputs["pruned"]):
        raise BadInput(
            "recover.devices.sharding is fsdp, but the model is trained between rounds of pruning, in which "
            "masked weights stay zero; give ddp"
        )
    # What is shared out may be larger than a device.
    device = "cpu" if shares else job.device
    model: Any = load_model(inputs["pruned"], job.dtype, device, job.trust_remote_code)
    teacher: Teacher | None = None
    if job.config.taught_from_disk:
        teacher = Disk(inputs["teacher"], data.rows)
    elif job.config.distills:
        # Held in the dtype that products run in, the teacher is not cast again for each micro-batch.
        narrow = min(job.dtype, _precision(job), key=BYTES.__getitem__)
        dense = load_for(replace(job, dtype=narrow), inputs["dense"], beside=model)
        teacher = Online(dense)
    with own_generator(job.seed, job.device):
        made = student(model)
        return made, fit(made, teacher, job, data, progress)


def numbers(history: list[dict[str, float]], data: TrainingData, **more: float) -> dict[str, float]:
    """Metrics of a training, and `more`."""
    tail = history[-max(1, len(history) // 10) :]
    looks = [entry["held_out"] for entry in history if "held_out" in entry]
    first = history[0].get("held_out_before")
    held_out = {} if first is None else {"held_out_first": first, "held_out_last": [first, *looks][-1]}
    exploded = {name: history[-1][name] for name in ("exploded_at_step",) if name in history[-1]}
    places, tokens = (sum(entry[name] for entry in history) for name in ("places", "tokens"))
    return {
        "recovery_steps": len(history),
        "recovery_tokens": tokens,
        "recovery_rows": len(data.rows) - len(data.held_out),
        "padding_share": 1 - tokens / places,
        **exploded,
        "loss_first": history[0]["loss"],
        "loss_last_tenth": sum(entry["loss"] for entry in tail) / len(tail),
        **held_out,
        **more,
    }


def fit(
    student: Any, teacher: Teacher | None, job: Job[RecoverConfig], data: TrainingData, progress: Progress
) -> list[dict[str, float]]:
    """Train the parameters of `student` that require gradients; one history entry a step.

    It is a model, or one with adapters around it.

    AdamW or Muon without weight decay; a warm-up, then a cosine to zero at the end of the whole recovery, of
    which this may be a part. An entry holds step, counted from the whole's beginning, loss, cross_entropy,
    distillation, the step's tokens without padding and places with it, learning_rate, grad_norm (before
    clipping), and held_out where the loss on the held-out slice was looked at behind it; the first has
    held_out_before too.

    Raises:
        StageFailed: a loss that is not finite or grows at once, with its step and examples.
    """
    training = Training(Learner(student, teacher, job.config, getattr(torch, _precision(job))), job, data)
    if training.accelerator.process_index:
        # Each process drops out inputs of its own.
        torch.manual_seed(job.seed + training.accelerator.process_index)
    with checkpoint.opened(job.checkpoints) as found:
        if found is not None:
            training.resume(found)
            done, steps = training.state.step, training.state.steps
            if training.accelerator.is_main_process:
                logger.warning("recovery goes on from step %d of %d, which a checkpoint holds", done, steps)
            progress(done, steps, "steps")
    # Under autocast peft's own cast of each input to the adapters' float32 would be undone at once.
    cast = disable_input_dtype_casting(student, active=_precision(job) != "float32")
    with deferred_termination() as ending, cast:
        training.run(progress, ending)
    trained = map(sharding.own, training.state.parameters.values())
    if training.agreed(not all(torch.isfinite(each).all() for each in trained))[0]:
        last = data.before + len(training.data.steps) - 1
        raise StageFailed(training.fault("a trained weight is not finite", last))
    if training.shares:
        sharding.gather(training.learner, training.accelerator.is_main_process)
    if not training.accelerator.is_main_process:
        raise PartDone
    return training.state.entries


def rate(step: int, whole: int, warmup_ratio: float) -> float:
    """The share of the peak learning rate at `step`, counted from 0, of `whole` steps.

    It rises in W = ceil(warmup_ratio * whole) even steps, and falls along a cosine behind them.
    """
    warmup = math.ceil(warmup_ratio * whole)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, whole - warmup)))


def _precision(job: Job[RecoverConfig]) -> str:
    return job.dtype if job.config.precision == "model" else job.config.precision


def _experts(learner: Learner) -> tuple[int, ...]:
    return shape_of(learner.base.config.to_dict()).experts


class Training:
    """The steps of a training, and the state that they change, all of which a checkpoint holds."""

    def __init__(self, learner: Learner, job: Job[RecoverConfig], data: TrainingData) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        # Each training of a process may have a precision of its own.
        AcceleratorState._reset_state(reset_partial_state=True)
        half = learner.dtype == torch.float16
        self.accelerator = Accelerator(
            cpu=job.device == "cpu",
            mixed_precision="fp16" if half else "no",
            # A batch may leave experts out.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(_experts(learner)))],
        )
        self.job, self.config, self.data = job, job.config, data
        self.all_data = data
        """Before a budget of seconds cut it."""
        self.learner = learner
        several = self.accelerator.num_processes > 1
        self.shares = several and job.config.devices.shares
        if job.config.gradient_checkpointing:
            learner.base.gradient_checkpointing_enable({"use_reentrant": False})
        learner.student.train()
        device, dtype = learner.base.device, getattr(torch, job.dtype)
        with learner.autocast(device):
            known = learner.dtype if learner.dtype != torch.float32 else dtype
            pays = job.device != "cpu" or learner.dtype != torch.float32
            asked = pays if job.config.pack == "auto" else job.config.pack
            packs = asked and keeps_apart(learner.base, data.rows, device, known)
        longest = job.config.seq_len_tokens
        if job.device == "cpu":
            longest = min(longest, CPU_SEQUENCE)
        self.pack_to = longest if packs else None
        """Tokens of a packed sequence; None where each example is one."""
        wrapped = sharding.sharded(learner, self.accelerator.device) if self.shares else None
        parameters = {name: each for name, each in learner.student.named_parameters() if each.requires_grad}
        optimizer = optimizer_of(job.config.optimizer, job.config.learning_rate, parameters, learner.base)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.module = wrapped or self.accelerator.prepare(learner)
        self.state = State(parameters, self.optimizer, self.accelerator.scaler, len(data.steps))
        if grows(learner.student):
            self.state.growth = Growth(learner.student, job.config.rank)
        budget = job.config.budget
        self.seconds = None if budget is None else budget.limit_seconds
        self.looked_at = self._when()
        self.ending = Termination()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint of this training."""
        if self.seconds is not None:
            self._plan(State.steps_in(folder))
        self.state.read(folder)

    def run(self, progress: Progress, ending: Termination) -> None:
        """Train up to the last step, until the held-out slice says that it is enough, or until a signal.

        A step or a look that a signal falls into is given up between two micro-batches, and the state behind
        the step before is kept. Several processes finish the step.
        """
        state, started = self.state, time.monotonic() - self.state.seconds
        self.ending = ending
        with suppress(GivenUp):
            if not state.micro_batch_tokens:
                state.micro_batch_tokens = self._micro_batch()
                if self.seconds is not None:
                    self._plan(self._steps_in(self.seconds))
            if not state.looks and self.data.held_out:
                state.looks.append(self._look())
            if state.entries and state.step in self.looked_at and "held_out" not in state.entries[-1]:
                self._look_behind(state.entries[-1])
        saved = began = time.monotonic()
        tokens, planned, planned_at = 0.0, saved, state.step
        [ends] = self.agreed(ending.asked)
        while state.step < state.steps and not ends:
            drawn = state.generators()
            try:
                entry = self._train(self.data.steps[state.step])
                self._require_learning(entry)
            except GivenUp:
                self.optimizer.zero_grad()
                state.draw_from(drawn)
                ends = True
                if state.step:
                    self._save()
                break
            except Exploded as error:
                if not self._went_back():
                    raise
                logger.warning("%s; training ends with the weights of step %d", error, state.step)
                state.entries[-1]["exploded_at_step"] = float(error.step)
                break
            if state.looks and not state.entries:
                entry["held_out_before"] = state.looks[0]
            state.entries.append(entry)
            state.step += 1
            state.seconds = time.monotonic() - started
            if self.seconds is not None and state.step % REPLANNED == 0:
                # Behind a restart fewer steps than usual may lie between two plans.
                now = time.monotonic()
                self._plan_again(self.seconds, (now - planned) / (state.step - planned_at))
                planned, planned_at = now, state.step
            if state.step in self.looked_at:
                with suppress(GivenUp):
                    self._look_behind(entry)
            tokens += entry["tokens"]
            self._show(entry, tokens / (time.monotonic() - began))
            progress(state.step, state.steps, "steps")
            if self._is_enough():
                break
            due = time.monotonic() - saved > 60 * self.config.checkpoint_minutes
            due, ends = self.agreed(due, ending.asked)
            if ends or (due and state.step < state.steps):
                self._save()
                saved = time.monotonic()
        if ends and not ending.asked:
            ending.number = signal.SIGTERM
        if state.best is not None:
            state.put(state.best)
        elif state.looks and state.looks[-1] > state.looks[0]:
            logger.warning(
                "the loss on the held-out slice rose from %.4g to %.4g in %d steps of recovery; lower "
                "recover.learning_rate (%g), train on more tokens, or keep the best weights by "
                "recover.patience",
                state.looks[0], state.looks[-1], state.step, self.config.learning_rate,
            )  # fmt: skip
        if state.growth is not None:
            state.growth.finish()

    def _look_behind(self, entry: dict[str, float]) -> None:
        entry["held_out"] = self._look()
        self.state.looks.append(entry["held_out"])

    def _give_up_if_asked(self) -> None:
        # Several processes would have to agree on it.
        if self.ending.asked and self.accelerator.num_processes == 1:
            raise GivenUp

    def _plan(self, steps: int) -> None:
        """Train for so many steps instead."""
        self.data = self.all_data.cut(steps)
        self.state.steps = len(self.data.steps)
        self.looked_at = self._when()

    def _steps_in(self, seconds: float) -> int:
        """Steps that fit into so many seconds, by what two cost that are done without changing a weight.

        The first of them also pays for what is set up once. Two looks are paid for in any case, though never
        with more than half of the seconds.
        """
        for examples in self.data.steps[:2]:
            began = time.monotonic()
            self._differentiate(Step(self.data, examples))
            self.optimizer.zero_grad()
        cost = time.monotonic() - began
        looks = LOOKS[0] * cost / 3 * self._held_out_tokens / self.config.batch_tokens
        steps = max(seconds - looks, seconds / 2) / (cost * (1 + LOOK_SHARE))
        return max(1, min(len(self.data.steps), self._least(int(steps))))

    def _plan_again(self, seconds: float, cost: float) -> None:
        """Train for as many steps as still fit, by what the last ones cost, so that the rate ends at zero."""
        look = cost / 3 * self._held_out_tokens / self.config.batch_tokens
        steps = self.state.step + max(1, int((seconds - self.state.seconds - look) / cost))
        steps = min(len(self.all_data.steps), self._least(steps))
        if abs(steps - self.state.steps) > NO_CHANGE * self.state.steps:
            self._plan(steps)

    @property
    def _held_out_tokens(self) -> int:
        return int(self.data.rows.lengths[self.data.held_out].sum())

    def _went_back(self) -> bool:
        """Whether there was a checkpoint to go back to, of good weights; of several processes none does."""
        if self.accelerator.num_processes > 1:
            return False
        with checkpoint.opened(self.job.checkpoints) as found:
            if found is not None:
                self.resume(found)
        return found is not None

    def _save(self) -> None:
        if self.job.checkpoints is not None:
            checkpoint.save(self.state, self.job.checkpoints, self.accelerator.is_main_process)

    def agreed(self, *answers: bool) -> list[bool]:
        """For each question whether one of the processes says yes: what all do, they must do together."""
        given = torch.tensor(answers, dtype=torch.float32, device=self.accelerator.device)
        return [bool(yes) for yes in self.accelerator.reduce(given, "sum").tolist()]

    def _total(self, value: int) -> int:
        given = torch.tensor([value], device=self.accelerator.device)
        return int(self.accelerator.reduce(given, "sum"))

    def _least(self, value: int) -> int:
        given = torch.tensor([value], device=self.accelerator.device)
        return int(self.accelerator.gather(given).min())

    def fault(self, what: str, step: int) -> str:
        """A sentence on what went wrong at a step, counted from the whole recovery's beginning at 0."""
        examples = self.data.steps[step - self.data.before]
        named = ", ".join(self.data.rows.name(one) for one in examples[:3])
        more = f" and {len(examples) - 3} more" if len(examples) > 3 else ""
        return (
            f"{what} at step {step + 1} of recovery ({named}{more}) with learning_rate "
            f"{self.config.learning_rate:g}; lower recover.learning_rate or raise recover.warmup_ratio, and "
            "check that the pruned model's own scores are finite"
        )

    def _train(self, examples: Sequence[int]) -> dict[str, float]:
        """One step; its entry."""
        at = self.data.before + self.state.step
        learning_rate = self.config.learning_rate * rate(at, self.data.whole, self.config.warmup_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        step, own = Step(self.data, examples), self.config.distill.on_policy
        if own and float(torch.rand(())) < own:
            drawn = sampled(self.learner.base, self.data, examples)
            step = Step(drawn, drawn.steps[0], weight=1.0)
        if self.state.growth is not None:
            self.state.growth.begin()
        summed, targets, places = self._differentiate(step)
        loss = self.learner.loss(self.accelerator.reduce(summed, "sum"), targets, step.weight)
        if not torch.isfinite(loss.total):
            raise Exploded(self.fault("the loss is not finite", at), at + 1)
        if self.state.growth is not None:
            self._grow(self.state.growth)
        norm = self.accelerator.clip_grad_norm_(self.state.parameters.values(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "step": at + 1,
            "loss": loss.total.item(),
            "cross_entropy": loss.cross_entropy.item(),
            "distillation": loss.distillation.item(),
            **({"states": loss.states.item()} if self.learner.pairs else {}),
            "tokens": float(sum(step.data.rows.lengths[one] for one in step.examples)),
            **({"on_policy": float(step.data is not self.data)} if own else {}),
            "places": float(places),
            "learning_rate": learning_rate,
            "grad_norm": float(sharding.whole(norm)),
        }

    def _grow(self, growth: Growth) -> None:
        scaler = self.accelerator.scaler
        growth.after_backward(
            self.state.step + 1,
            self.state.steps,
            lambda one: self.accelerator.reduce(one, "mean"),
            1.0 if scaler is None else scaler.get_scale(),
        )

    def _differentiate(self, step: Step) -> tuple[Tensor, int, int]:
        """Add a step's gradients; the sums of its losses, its targets and its places.

        One context around all micro-batches casts each weight once, not for each of them; weights that are
        shared out are let go after each.
        """
        with nullcontext() if self.shares else self.learner.autocast(self.accelerator.device):
            return self._differentiated(step)

    def _differentiated(self, step: Step) -> tuple[Tensor, int, int]:
        targets = sum(step.data.targets(one) for one in step.examples)
        summed, places = None, 0
        parts = list(self._parts(step.data, step.examples))
        for number, (batch, counts) in enumerate(parts):
            self._give_up_if_asked()
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                found = self.module(batch) if counts else 0.0 * self.module(batch)
                self._give_up_if_asked()
                # Gradients are averaged over processes, and the loss is a sum over them.
                self.accelerator.backward(
                    self.learner.loss(found, targets, step.weight).total * self.accelerator.num_processes
                )
            summed = found.detach() if summed is None else summed + found.detach()
            places += batch.input_ids.numel() if counts else 0
        assert summed is not None
        return summed, targets, self._total(places)

    def _parts(self, data: TrainingData, examples: Sequence[int]) -> Iterator[tuple[Batch, bool]]:
        """The micro-batches of examples that fall to this process, and whether each counts."""
        lengths, accelerator = data.rows.lengths, self.accelerator
        parts = layouts(lengths, examples, self.state.micro_batch_tokens, self.pack_to)
        for layout, counts in dealt(parts, lengths, accelerator.process_index, accelerator.num_processes):
            self._give_up_if_asked()
            yield self._batch(data, layout), counts

    def _batch(self, data: TrainingData, layout: Layout) -> Batch:
        pack = self.pack_to is not None
        return collate(data.rows, layout, data.everything, pack).to(self.accelerator.device)

    def _look(self) -> float:
        """The loss on the held-out slice; the weights are kept where they are the best so far."""
        found = self._held_out()
        if self.config.patience is not None and found < min(self.state.looks, default=math.inf):
            self.state.best = {name: each.detach().clone() for name, each in self.state.parameters.items()}
        return found

    @torch.no_grad()
    def _held_out(self) -> float:
        with _evaluating(self.learner.student):
            found = [
                (self.learner(batch), counts) for batch, counts in self._parts(self.data, self.data.held_out)
            ]
        summed = self.accelerator.reduce(torch.stack([sums * counts for sums, counts in found]).sum(0), "sum")
        targets = sum(self.data.targets(one) for one in self.data.held_out)
        return float(self.learner.loss(summed, targets).total)

    def _when(self) -> set[int]:
        """Steps behind which the held-out slice is looked at."""
        steps = len(self.data.steps)
        if not self.data.held_out:
            return set()
        affordable = int(LOOK_SHARE * 3 * self.data.tokens / self._held_out_tokens)
        count = min(max(LOOKS[0], affordable), LOOKS[1]) - 1
        return {math.ceil(steps * number / count) for number in range(1, count + 1)}

    def _is_enough(self) -> bool:
        patience, looks = self.config.patience, self.state.looks
        since = len(looks) - 1 - looks.index(min(looks)) if looks else 0
        return patience is not None and since >= patience

    def _require_learning(self, entry: Mapping[str, float]) -> None:
        """Exploded where the loss is far above that of the first step."""
        first = self.state.entries[0]["loss"] if self.state.entries else entry["loss"]
        if entry["loss"] > 2 * first + 1:
            step = int(entry["step"])
            grew = f"the loss grew from {first:.2f} to {entry['loss']:.2f}"
            raise Exploded(self.fault(grew, step - 1), step)

    def _show(self, entry: Mapping[str, float], tokens_per_second: float) -> None:
        cuda = self.accelerator.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
        shown = {name: value for name, value in entry.items() if name != "step"}
        more = {"tokens_per_second": tokens_per_second, "memory_bytes": float(memory)}
        self.job.watch(int(entry["step"]), {**shown, **more})

    def _micro_batch(self) -> int:
        """Places that are computed at once; every process needs a part of a step."""
        asked, processes = self.config.micro_batch_tokens, self.accelerator.num_processes
        step = math.ceil(self.config.batch_tokens / processes)
        if asked != "auto":
            return asked if processes == 1 else min(asked, step)
        if self.accelerator.device.type == "cpu":
            return max(1, min(self.config.batch_tokens // max(PARTS, processes), CPU_TOKENS))
        from accelerate.utils.memory import release_memory, should_reduce_batch_size

        longest = sorted(range(len(self.data.rows)), key=lambda one: -self.data.rows.lengths[one])[:step]
        while True:
            full = False
            try:
                batch = self._batch(
                    self.data, layouts(self.data.rows.lengths, longest, step, self.pack_to)[0]
                )
                self.learner.loss(self.learner(batch), len(batch.targets)).total.backward()
            except RuntimeError as error:
                if not should_reduce_batch_size(error) or step <= 64:
                    raise
                full = True
            finally:
                self.optimizer.zero_grad()
                release_memory()
            if not self.agreed(full)[0]:
                return step
            step //= 2


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout while the context is open."""
    model.eval()
    try:
        yield
    finally:
        model.train()
