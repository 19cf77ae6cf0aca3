"""What a recovery trains on, step by step, and the trained model that a method returns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.prune.plan import Plan
from resprout.tasks.recover.examples import ROWS, Examples, read_examples

MOST_TOKENS_PER_SECOND = 100_000
"""Above what a machine trains; how many it does is measured."""
LEAST_HELD_OUT = 512
"""Tokens below which a slice says nothing: then none is held out."""
MOST_HELD_OUT = 8192
"""Tokens beyond which a larger slice costs time and hardly sharpens the comparison of looks at it."""


@dataclass(frozen=True)
class TrainingData:
    """Examples as tokens, and those of each step; the loss is the mean over the targets of a step.

    `steps[s]` are the examples of step s of this part of a recovery, in front of which `before` steps came,
    of `whole` in all. Those that are `held_out` are trained on in no step. `everything`: prompts count too.
    """

    rows: Examples
    steps: list[list[int]]
    before: int
    whole: int
    held_out: list[int]
    everything: bool = False

    def cut(self, steps: int) -> TrainingData:
        """The first steps alone, as a recovery of its own."""
        return replace(self, steps=self.steps[:steps], whole=steps)

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return int(sum(self.rows.lengths[step].sum() for step in self.steps))

    @property
    def text_tokens(self) -> int:
        """Tokens of all running text."""
        return _text_tokens(self.rows)

    def targets(self, example: int) -> int:
        """Tokens of an example that are predicted."""
        return int(self.rows.lengths[example]) - self.rows.first(example, self.everything)


class Adapter(NamedTuple):
    """What a recovery added to the pruned model: peft's config as plain data, and its tensors."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class Recovered:
    """The trained model in its storage dtype, one entry a step, and numbers about the whole.

    `adapter` is there where the model is the pruned one with an adapter merged into it.
    """

    model: Any
    history: list[dict[str, float]]
    metrics: dict[str, float] = field(default_factory=dict)
    adapter: Adapter | None = None
    plan: Plan | None = None


def prepare(
    config: RecoverConfig,
    inputs: Mapping[str, Path],
    seed: int,
    trust_remote_code: bool = False,
    examples: Examples | None = None,
) -> TrainingData:
    """The examples in steps of `batch_tokens`; `examples`, where they are tokens already.

    Without `recover.tokens` a recovery takes epochs * (budget of the selection + tokens of the text): the
    budget that was asked for decides, not what a method filled, so that all selection methods train for the
    same number of steps. Of a part of a recovery the steps are its share of the whole's, in their order.

    Raises:
        BadInput: nothing to train on; weights for sources that cannot be told apart.
    """
    examples = examples or read_examples(config, inputs, trust_remote_code)
    held_out = _held_out(examples, config.held_out_ratio, seed)
    sources = _sources(config, examples, held_out)
    tokens = config.tokens or _budget(config) or config.epochs * _size(examples, inputs)
    steps = max(1, math.ceil(tokens / config.batch_tokens))
    skipped = round(config.skip_tokens / config.batch_tokens)
    order = mixed(examples.lengths, sources, (skipped + steps) * config.batch_tokens, seed)
    made = in_steps(order, examples.lengths, config.batch_tokens)[skipped : skipped + steps]
    begin, end = (round(share * len(made)) for share in config.part)
    # A share of less than a step trains for the one that it begins with.
    begin = min(begin, len(made) - 1)
    part = made[begin : max(end, begin + 1)]
    return TrainingData(examples, part, begin, len(made), held_out, config.loss_on == "all")


class Source(NamedTuple):
    """Examples of one kind, and their share of all tokens that are trained on."""

    examples: NDArray[np.int64]
    share: float


def mixed(lengths: NDArray[np.int64], sources: Sequence[Source], tokens: int, seed: int) -> NDArray[np.int64]:
    """An order of examples whose first n tokens hold each source's share of n, of `tokens` tokens and more.

    Each source goes through its examples pass after pass, each pass in an order of its own.
    """
    orders, places = [], []
    for number, source in enumerate(sources):
        wanted, held = tokens * source.share, int(lengths[source.examples].sum())
        # A pass is drawn by its number, so that fewer tokens are the first of more.
        draws = (np.random.default_rng([seed, number, one]) for one in range(math.ceil(wanted / held) + 1))
        order = np.concatenate([draw.permutation(source.examples) for draw in draws])
        ordered = lengths[order]
        orders.append(order)
        places.append((np.cumsum(ordered) - ordered / 2) / source.share)
    merged = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(orders)[merged]


def in_steps(order: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int) -> list[list[int]]:
    """The order cut into steps of `batch_tokens`: each example goes to the step that holds its middle.

    So a step is off by an example at most, and the mean is exact.
    """
    ordered = lengths[order]
    step = (2 * np.cumsum(ordered) - ordered) // (2 * batch_tokens)
    borders = np.flatnonzero(np.diff(step)) + 1
    return [one.tolist() for one in np.split(order, borders)]


def _held_out(examples: Examples, ratio: float, seed: int) -> list[int]:
    """Examples of about this share of the tokens, drawn by the seed; none where that would be too few."""
    wanted = min(ratio * int(examples.lengths.sum()), MOST_HELD_OUT)
    if wanted < LEAST_HELD_OUT:
        return []
    order = np.random.default_rng(seed + 1).permutation(len(examples))
    count = int(np.searchsorted(np.cumsum(examples.lengths[order]), wanted))
    return sorted(order[: max(1, count)].tolist())


def _sources(config: RecoverConfig, examples: Examples, held_out: Sequence[int]) -> list[Source]:
    """The groups of examples with the weights that the config gives them, by tokens where it gives none."""
    kept = np.setdiff1d(np.arange(len(examples)), held_out)
    groups = [one for one in examples.groups if one.end > one.begin]
    weights = {ROWS: config.rows_weight}
    given = [one.weight for one in config.text]
    named = [one.name for one in groups if one.name != ROWS]
    if any(weight is not None for weight in given):
        if len(named) != len(given):
            raise BadInput(
                f"recover.text has {len(given)} sources, of which {len(named)} can be told apart "
                f"({', '.join(named)}); to weigh them give each a file of its own, or drop the weights"
            )
        weights |= dict(zip(named, given, strict=True))
    found = []
    for group in groups:
        members = kept[(kept >= group.begin) & (kept < group.end)]
        size = float(examples.lengths[members].sum())
        weight = weights.get(group.name)
        if size and weight != 0:
            found.append((members, size if weight is None else weight, weight is None))
    if len({by_size for _, _, by_size in found}) > 1:
        raise BadInput(
            "recover weighs some sources of examples and not others; give recover.rows_weight and the weight "
            "of each source in recover.text, or none of them"
        )
    whole = sum(weight for _, weight, _ in found)
    return [Source(members, weight / whole) for members, weight, _ in found]


def _budget(config: RecoverConfig) -> float | None:
    """Tokens of the budget: the most that its seconds could hold, of which training takes what they do."""
    if config.budget is None:
        return None
    seconds = config.budget.limit_seconds
    within = [] if seconds is None else [seconds * MOST_TOKENS_PER_SECOND]
    return min([*within, *([] if config.budget.tokens is None else [config.budget.tokens])])


def _size(examples: Examples, inputs: Mapping[str, Path]) -> int:
    """Tokens of an epoch."""
    text = _text_tokens(examples)
    if "selection" not in inputs:
        return text
    summary = json.loads((inputs["selection"] / "summary.json").read_text(encoding="utf-8"))
    return text + int(summary["requested_tokens"])


def _text_tokens(examples: Examples) -> int:
    texts = (one for one in examples.groups if one.name != ROWS)
    return sum(int(examples.lengths[one.begin : one.end].sum()) for one in texts)
