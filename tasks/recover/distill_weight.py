"""`recover.distill_weight: auto`: the weight of distillation by the share of the pool that was selected.

"Distilling the Knowledge in Data Pruning" (2403.07854): training on a share f of the data with a teacher that
saw all of it, a large weight of distillation is best where f is around 0.1 and a smaller one where it is near
1. The paper shows this for image classification (CIFAR-100) and gives no formula. Ours is the line and its
two ends: 1 - f / 2, which is 1 where next to nothing is selected and a half where all is. That it holds for
language models is not shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig

LEAST = 0.5
"""The weight where all of the pool is trained on."""


def weight_of(config: RecoverConfig, inputs: Mapping[str, Path], text_tokens: int = 0) -> float:
    """The weight that the section gives, or for auto the one by the share of all tokens that was selected.

    Running text, of which there are `text_tokens`, was not selected from anything: it counts as a whole.

    Raises:
        BadInput: the selection does not say how large its pool was.
    """
    if config.distill_weight != "auto":
        return config.distill_weight
    return automatic(selected_share(inputs, text_tokens))


def automatic(share: float) -> float:
    """The weight for a share of the data between 0 and 1."""
    return 1 - (1 - LEAST) * min(1.0, max(0.0, share))


def selected_share(inputs: Mapping[str, Path], text_tokens: int = 0) -> float:
    """Tokens of the selected rows over those of the pool, with the text in both; 1 where that is alone."""
    if "selection" not in inputs:
        return 1.0
    summary = json.loads((inputs["selection"] / "summary.json").read_text(encoding="utf-8"))
    if not summary.get("pool_tokens"):
        raise BadInput(
            "recover.distill_weight is auto, but the selection does not say how many tokens its pool has; "
            "give a number from 0 to 1, or let the run select again"
        )
    return float(summary["filled_tokens"] + text_tokens) / float(summary["pool_tokens"] + text_tokens)
