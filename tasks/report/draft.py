"""The sentence on the last model as a draft for the dense one."""

from __future__ import annotations

from collections.abc import Mapping

from resprout.tasks.measure.ratio import ratio_in

SPEED = "draft_assisted_tokens_per_s"


def draft_sentence(metrics: Mapping[str, float]) -> str:
    """What was accepted, what that does to the speed, and whether the text stayed the same."""
    same = metrics["draft_same_text_share"]
    text = "all prompts" if same == 1.0 else f"{100 * same:.0f} % of the prompts"
    rate = metrics.get("draft_acceptance_rate")
    accepted = (
        "nothing was proposed, as every prompt was answered by one token"
        if rate is None
        else f"{100 * rate:.0f} % of what it proposes is accepted"
    )
    return (
        f"As a draft for the dense model: {accepted}, {metrics['draft_tokens_per_pass']:.2f} tokens for each "
        "pass of the dense model; "
        f"together {metrics[SPEED]:.1f} tokens/s, the dense model alone "
        f"{metrics['draft_plain_tokens_per_s']:.1f} ({ratio_in(metrics, SPEED)}); the same text "
        f"behind {text}."
    )
