"""Choose what recovery trains on and how, by the rows that there are."""

from __future__ import annotations

import math
from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows.first_config.data import Found
from resprout.flows.first_config.model import ModelLook
from resprout.flows.first_config.section import Written
from resprout.flows.validate import CHATS
from resprout.tasks.data.chat import rendered
from resprout.tasks.select.paser_size import MOST_ROWS

USUAL_TOKENS, MOST_TOKENS = 256, 1024
"""Lengths of rows: what most have, and where they are cut in any case."""
AROUND = 64
"""Tokens of the template around a row."""
FEW_ROWS, ROWS_A_CLUSTER, MOST_CLUSTERS = 500, 10, 10
STEPS = 16
"""Training steps that a small pool makes at least."""
MOST_BATCH, LEAST_BATCH = 2048, 64
LEFT_OUT = (
    "no --pool: nothing is trained after pruning; init --pool FILE (rows with a task and its answer) adds "
    "select and recover"
)


def recovery(address: str, pool: Found | None, model: ModelLook) -> list[Written]:
    """The sections `select` and `recover`; left out without a pool."""
    if pool is None:
        return [Written("recover", [LEFT_OUT])]
    template, why_template = _template(pool, model)
    lengths = sorted(_lengths(pool, model)) or [USUAL_TOKENS]
    positions = model.shape.max_positions if model.shape is not None else 0
    asked = 2 ** math.ceil(math.log2(max(USUAL_TOKENS, lengths[int(0.95 * (len(lengths) - 1))])))
    longest = min(asked, MOST_TOKENS, positions or MOST_TOKENS)
    rows = len(pool.items)
    source = dict(pool.settings)
    if not pool.opened or rows > MOST_ROWS // 2:
        source["limit"] = MOST_ROWS // 2
    used = min(rows, MOST_ROWS // 2) if pool.opened else MOST_ROWS // 2
    ratio = 1.0 if used < 2 * ROWS_A_CLUSTER else 0.5 if used <= FEW_ROWS else 0.2
    budget = ratio * used * sum(min(one, longest) for one in lengths) / len(lengths)
    batch = 2 ** int(math.log2(max(LEAST_BATCH, min(MOST_BATCH, budget / STEPS))))
    clusters = min(MOST_CLUSTERS, used // ROWS_A_CLUSTER)
    why = [f"{address}: {pool.columns}"]
    if pool.opened:
        of = "their tokens" if used == rows else f"the tokens of {used:,} of them"
        more = "" if pool.whole else "more than "
        why.append(f"{more}{rows:,} different rows; recovery trains on {ratio:.0%} of {of}")
    why.append(why_template)
    method: dict[str, Any] = {"method": "random"}
    if clusters >= 2:
        method = {"method": "paser", "paser": {"clusters": clusters}}
    else:
        why.append(f"drawn at random: {rows} rows are too few for paser to make clusters of")
    return [
        Written(
            "select",
            why,
            {
                **method,
                "pool": [source],
                "budget_ratio": ratio,
                "template": template,
                "max_len_tokens": longest,
            },
        ),
        Written(
            "recover",
            [
                f"steps of {batch} tokens; mostly towards the distribution of the dense model, as in the "
                "quickstart"
            ],
            {
                "method": "lora",
                "rank": 8,
                "alpha": 16,
                "dropout": 0.0,
                "learning_rate": 1e-3,
                "epochs": 1,
                "batch_tokens": batch,
                "distill_weight": 0.9,
            },
        ),
    ]


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
