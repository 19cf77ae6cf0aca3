"""Choose what recovery trains on and how, by the text and the rows that there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
LARGE_PARAMS = 1_000_000_000
"""From here on models are trained at a lower rate."""
SMALL_CUT, LOW_RATE = 0.08, 1e-4
"""Share of the model below which a cut is small, and the rate at which little is forgotten then."""
LEFT_OUT = (
    "no text beside what is held out, and no --pool: nothing is trained after pruning; init --text FILE with "
    "more documents, or --pool FILE (rows with a task and its answer), adds recover"
)


def recovery(
    address: str,
    pool: Found | None,
    texts: Texts | None,
    model: ModelLook,
    dtype: str,
    target: Mapping[str, Any],
) -> list[Written]:
    """The sections `select`, with a pool, and `recover`, where there are rows or text to learn from.

    `target` is that of `prune`: the more goes, the more is to be learned.
    """
    if texts is not None and not texts.apart:
        texts = None
    if texts is None and pool is None:
        return [Written("recover", [LEFT_OUT])]
    select: list[Written] = []
    tokens, learned, text = 0.0, [], {}
    if texts is not None:
        tokens, text = texts.calibration_tokens, {"text": list(texts.calibration)}
        learned = ["the text of the calibration"]
    if pool is not None:
        written, of_rows = _select(address, pool, model)
        select, tokens, learned = [written], tokens + of_rows, [*learned, "the rows"]
    method, why_method = _method(model, dtype, _small(target))
    trained = {"tokens": MOST_TRAINED} if tokens > MOST_TRAINED else {"epochs": 1}
    steps = min(tokens, MOST_TRAINED) / STEPS
    batch = 2 ** int(math.log2(max(LEAST_BATCH, min(MOST_BATCH, steps))))
    why = [
        f"trained towards the words of the dense model on {' and '.join(learned)}",
        f"{'one pass, ' if tokens <= MOST_TRAINED else ''}in steps of {batch} tokens",
        why_method,
    ]
    return [*select, Written("recover", why, {**method, **trained, "batch_tokens": batch, **text})]


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


def _select(address: str, pool: Found, model: ModelLook) -> tuple[Written, float]:
    """The section `select`, and the tokens that it selects."""
    template, why_template = _template(pool, model)
    lengths = sorted(_lengths(pool, model)) or [USUAL_TOKENS]
    positions = model.shape.max_positions if model.shape is not None else 0
    asked = 2 ** math.ceil(math.log2(max(USUAL_TOKENS, lengths[int(0.95 * (len(lengths) - 1))])))
    longest = min(asked, MOST_TOKENS, positions or MOST_TOKENS)
    source, rows = dict(pool.settings), len(pool.items)
    ratio = 1.0 if rows < 2 * ROWS_A_CLUSTER else 0.5 if rows <= FEW_ROWS else 0.2
    if not pool.opened:
        source["limit"] = rows = ROWS_ELSEWHERE
        ratio = RATIO_ELSEWHERE
    tokens = ratio * rows * sum(min(one, longest) for one in lengths) / len(lengths)
    budget: dict[str, Any] = {"budget_ratio": ratio}
    trained = f"{ratio:.0%} of their tokens"
    if pool.opened and tokens > MOST_TRAINED:
        tokens, budget = MOST_TRAINED, {"budget_tokens": MOST_TRAINED}
        trained = f"{MOST_TRAINED:,} of their tokens"
    clusters = min(MOST_CLUSTERS, rows // ROWS_A_CLUSTER)
    why = [f"{address}: {pool.columns}"]
    if pool.opened:
        more = "" if pool.whole else "more than "
        why.append(f"{more}{rows:,} different rows; recovery trains on {trained}")
    else:
        why.append(f"{rows:,} rows drawn of it; recovery trains on {trained}")
    why.append(why_template)
    method: dict[str, Any] = {"method": "random"}
    if clusters >= 2:
        method = {"method": "paser", "paser": {"clusters": clusters}}
    else:
        why.append(f"drawn at random: {rows} rows are too few for paser to make clusters of")
    values = {
        **method,
        "pool": [source],
        **budget,
        "template": template,
        "max_len_tokens": longest,
    }
    return Written("select", why, values), tokens


def _template(pool: Found, model: ModelLook) -> tuple[str, str]:
    """`chat` where the model has a template that renders the rows, else `alpaca`; and why."""
    if model.chat is None:
        return "alpaca", "template alpaca, because the model has no chat template"
    try:
        rendered(model.chat.text, model.chat.special_tokens, [item.row for item in pool.items[:CHATS]])
    except BadInput as error:
        return "alpaca", f"template alpaca, because {error}"
    return "chat", "template chat: the model's own"


def _lengths(pool: Found, model: ModelLook) -> list[int]:
    """Tokens of the rows with a template around them."""
    texts = pool.part(0, 100)
    each = model.characters_per_token(texts)
    return [int(len(text) / each) + AROUND for text in texts]
