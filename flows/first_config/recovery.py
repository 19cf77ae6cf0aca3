"""Choose what recovery trains on and how, by the text and the rows that there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows import preflight
from resprout.flows.first_config.data import Found
from resprout.flows.first_config.model import ModelLook
from resprout.flows.first_config.section import Written
from resprout.flows.first_config.texts import Texts
from resprout.flows.validate import CHATS
from resprout.tasks.core.hardware import total_memory
from resprout.tasks.data.chat import rendered
from resprout.tasks.models.shape import BYTES

USUAL_TOKENS, MOST_TOKENS = 256, 1024
"""Lengths of rows: what most have, and where they are cut in any case."""
AROUND = 64
"""Tokens of the template around a row."""
FEW_ROWS, ROWS_A_CLUSTER, MOST_CLUSTERS = 500, 10, 10
ROWS_ELSEWHERE, RATIO_ELSEWHERE = 20_000, 0.05
"""Rows taken of a pool that was not looked at, and the share of them that recovery trains on."""
STEPS = 16
"""Training steps that a small pool makes at least."""
MOST_BATCH, LEAST_BATCH = 1024, 64
MOST_TRAINED = 262_144
"""Tokens that a first training takes where there are more; the report shows what more would bring."""
MOST_TEXT = 0.2
"""Share of them that text takes where rows are enough: the quickstart's proportion, but for rows of yours."""
LARGE_PARAMS = 1_000_000_000
"""From here on models are trained at a lower rate."""
SMALL_CUT, LOW_RATE = 0.08, 1e-4
"""Share of the model below which a cut is small, and the rate at which little is forgotten then."""
LEFT_OUT = (
    "no text beside what is held out, and no --pool: nothing is trained after pruning; init --text FILE with "
    "more documents, or --pool FILE (rows with a task and its answer), adds recover"
)


@dataclass(frozen=True)
class _Rows:
    """The rows of all pools: how many, the tokens of some, where they are cut, what share is chosen."""

    pools: Sequence[Found]
    count: int
    lengths: Sequence[int]
    longest: int
    ratio: float

    @property
    def opened(self) -> bool:
        """Whether all pools were looked at."""
        return all(one.opened for one in self.pools)

    @property
    def chosen(self) -> float:
        """Tokens of the share that is chosen."""
        return (
            self.ratio * self.count * sum(min(one, self.longest) for one in self.lengths) / len(self.lengths)
        )


def recovery(
    pools: Sequence[Found],
    texts: Texts | None,
    model: ModelLook,
    dtype: str,
    target: Mapping[str, Any],
) -> list[Written]:
    """The sections `select`, with pools, and `recover`, where there are rows or text to learn from.

    `target` is that of `prune`: the more goes, the more is to be learned.
    """
    if texts is not None and not texts.apart:
        texts = None
    if texts is None and not pools:
        return [Written("recover", [LEFT_OUT])]
    look = _rows(pools, model) if pools else None
    held = look.chosen if look is not None else 0.0, texts.calibration_tokens if texts is not None else 0.0
    of_rows, of_text = _shares(*held)
    tokens, cut = of_rows + of_text, sum(held) > MOST_TRAINED
    select = [] if look is None else [_select(look, of_rows, model)]
    learned = ["the text of the calibration"] * (texts is not None) + ["the rows"] * (look is not None)
    method, why_method = _method(model, dtype, _small(target))
    trained = {"tokens": MOST_TRAINED} if cut else {"epochs": 1}
    batch = 2 ** int(math.log2(max(LEAST_BATCH, min(MOST_BATCH, tokens / STEPS))))
    why = [f"trained towards the words of the dense model on {' and '.join(learned)}"]
    sources = [dict(one) for one in texts.calibration] if texts is not None else []
    weights: dict[str, Any] = {}
    if cut and look is not None and sources:
        share = max(0.001, round(of_rows / tokens, 3))
        weights = {"rows_weight": share}
        sources = [{**one, "weight": round((1 - share) / len(sources), 3)} for one in sources]
        why.append(
            f"of {MOST_TRAINED:,} tokens {share:.1%} are rows (rows_weight) and the rest text (weight)"
        )
    why += [f"{'' if cut else 'one pass, '}in steps of {batch} tokens", why_method]
    text = {"text": sources} if sources else {}
    return [*select, Written("recover", why, {**method, **trained, "batch_tokens": batch, **weights, **text})]


def _shares(of_rows: float, of_text: float) -> tuple[float, float]:
    """Tokens of rows and of text that are trained on, of those that there are."""
    if of_rows + of_text <= MOST_TRAINED:
        return of_rows, of_text
    text = min(of_text, max(MOST_TEXT * MOST_TRAINED, MOST_TRAINED - of_rows))
    return MOST_TRAINED - text, text


def _method(model: ModelLook, dtype: str, small: bool) -> tuple[dict[str, Any], str]:
    """All weights where memory holds them in training, else adapters; and why."""
    shape = model.shape
    params = shape.params if shape is not None else 0
    needed = (preflight.FULL_TRAINING + BYTES[dtype]) * params + preflight.WORKING_BYTES
    total = total_memory(preflight.device("auto"))
    if not total or needed < total:
        why = "all weights, which gains more than adapters"
        if small:
            return {"method": "distill", "learning_rate": LOW_RATE}, f"{why}, at a low rate: the cut is small"
        rate = 1e-4 if params >= LARGE_PARAMS else 2e-4
        half = {"method": "distill", "distill_weight": 0.5, "learning_rate": rate}
        return half, f"{why}; half of the loss is the dense model's words, half the data's own"
    adapters = {"rank": 32, "alpha": 32, "dropout": 0.0, "learning_rate": 3e-4, "distill_weight": 1.0}
    return {"method": "lora", **adapters}, (
        f"adapters, because training all {params / 1e9:,.1f} billion weights takes {needed / 1e9:,.0f} GB"
    )


def _small(target: Mapping[str, Any]) -> bool:
    """Whether the target, where it is a share, takes only a small part away."""
    return any(key.endswith("_ratio") and 1 - value < SMALL_CUT for key, value in target.items())


def _rows(pools: Sequence[Found], model: ModelLook) -> _Rows:
    lengths = sorted(length for pool in pools for length in _lengths(pool, model)) or [USUAL_TOKENS]
    positions = model.shape.max_positions if model.shape is not None else 0
    asked = 2 ** math.ceil(math.log2(max(USUAL_TOKENS, lengths[int(0.95 * (len(lengths) - 1))])))
    longest = min(asked, MOST_TOKENS, positions or MOST_TOKENS)
    count = sum(len(pool.items) if pool.opened else ROWS_ELSEWHERE for pool in pools)
    ratio = 1.0 if count < 2 * ROWS_A_CLUSTER else 0.5 if count <= FEW_ROWS else 0.2
    if not all(pool.opened for pool in pools):
        ratio = RATIO_ELSEWHERE
    return _Rows(pools, count, lengths, longest, ratio)


def _select(look: _Rows, trained_on: float, model: ModelLook) -> Written:
    """The section `select`, by which recovery trains on so many tokens of the rows."""
    template, why_template = _template(look.pools, model)
    sources = [{**pool.settings, **({} if pool.opened else {"limit": ROWS_ELSEWHERE})} for pool in look.pools]
    budget: dict[str, Any] = {"budget_ratio": look.ratio}
    why = [line for pool in look.pools for line in pool.why]
    if not look.opened:
        drawn = f"{ROWS_ELSEWHERE:,} drawn of each pool elsewhere"
        why.append(f"{look.count:,} rows, {drawn}; {look.ratio:.0%} of their tokens are chosen")
    else:
        trained = f"{look.ratio:.0%}"
        if trained_on < look.chosen:
            budget = {"budget_tokens": int(trained_on)}
            trained = f"{int(trained_on):,}"
        more = "" if all(pool.whole for pool in look.pools) else "more than "
        why.append(f"{more}{look.count:,} different rows; recovery trains on {trained} of their tokens")
    why.append(why_template)
    clusters = min(MOST_CLUSTERS, look.count // ROWS_A_CLUSTER)
    method: dict[str, Any] = {"method": "random"}
    if clusters >= 2:
        method = {"method": "paser", "paser": {"clusters": clusters}}
    else:
        why.append(f"drawn at random: {look.count} rows are too few for paser to make clusters of")
    values = {
        **method,
        "pool": sources,
        **budget,
        "template": template,
        "max_len_tokens": look.longest,
    }
    return Written("select", why, values)


def _template(pools: Sequence[Found], model: ModelLook) -> tuple[str, str]:
    """`chat` where the model has a template that renders the rows, else `alpaca`; and why."""
    if model.chat is None:
        return "alpaca", "template alpaca, because the model has no chat template"
    rows = [item.row for pool in pools for item in pool.items[:CHATS]]
    try:
        rendered(model.chat.text, model.chat.special_tokens, rows)
    except BadInput as error:
        return "alpaca", f"template alpaca, because {error}"
    return "chat", "template chat: the model's own"


def _lengths(pool: Found, model: ModelLook) -> list[int]:
    """Tokens of the rows with a template around them."""
    texts = pool.part(0, 100)
    each = model.characters_per_token(texts)
    return [int(len(text) / each) + AROUND for text in texts]
