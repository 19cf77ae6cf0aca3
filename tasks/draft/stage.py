"""Stage draft: how much of what the last model proposes the dense one accepts, and whether that is faster.

Inputs: `source` and `model`. Content: metrics.json, and details.json with the counts of each prompt, the
seconds of each round and the hardware.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import DraftConfig
from resprout.tasks.core.hardware import fingerprint
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, Volume, stage
from resprout.tasks.measure.ratio import ratio_of

if TYPE_CHECKING:
    from resprout.tasks.draft.assisted import Written

SPEED = "assisted_tokens_per_s"


def lengths(config: DraftConfig) -> dict[str, int]:
    """Sequences that the model must take, the prompts left out, whose tokens are not known yet."""
    return {"draft.new_tokens": config.new_tokens}


def tokens(config: Mapping[str, Any], volume: Volume) -> float:
    """Tokens that are written, alone and with help."""
    return float(2 * (1 + config["repeats"]) * len(config["prompts"]) * config["new_tokens"])


@stage(
    "draft",
    kind="drafting",
    section="draft",
    reads={"source": Reads("model"), "model": Reads("model")},
    reported=True,
    libraries=("torch", "transformers"),
    hardware=True,
    tokens=tokens,
    lengths=lengths,
    metrics=("draft_acceptance_rate", f"draft_{SPEED}_ratio"),
)
def draft(job: Job[DraftConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write what was proposed and accepted, and the speeds, in rounds in which both ways have their turn."""
    from resprout.tasks.draft.assisted import Writer
    from resprout.tasks.evaluate.prompts import prompt_ids
    from resprout.tasks.models.generation import padding_token
    from resprout.tasks.models.load import load_pair, load_tokenizer

    config = job.config
    tokenizer = load_tokenizer(inputs["source"], job.trust_remote_code)
    prompts, chat, note = prompt_ids(tokenizer, config.prompts)
    target, helper = load_pair(job, inputs["source"], inputs["model"])
    writer = Writer(target, helper, padding_token(tokenizer), config.new_tokens, config.proposed_tokens)
    rounds: list[dict[bool, list[Written]]] = []
    # The first round warms everything up, and is not counted.
    for number in range(1 + config.repeats):
        order = (False, True) if number % 2 else (True, False)
        rounds.append({way: [writer.write(prompt, way) for prompt in prompts] for way in order})
        progress(number + 1, 1 + config.repeats, "rounds")
    metrics, details = summary(config, rounds[1:])
    details |= {"chat": chat, "note": note, "hardware": fingerprint()}
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")
    (workdir / "details.json").write_text(json.dumps(details, sort_keys=True, indent=1) + "\n")


def summary(
    config: DraftConfig, rounds: list[dict[bool, list[Written]]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and details of rounds, in each of which all prompts are continued with help (True) and alone.

    `draft_acceptance_rate` is accepted / proposed tokens, left out where every prompt was answered by one
    token, so that nothing was proposed; `draft_tokens_per_pass` those that a pass of the dense model yields.
    Speeds are tokens a second at the median round; their ratio is that of the seconds a token in each round,
    with its interval. `draft_same_text_share` is that of prompts with the same text.
    """
    alone, helped = rounds[0][False], rounds[0][True]
    proposed, passes = (
        sum(getattr(one, name) for one in helped) for name in ("draft_passes", "target_passes")
    )
    each = {way: [_seconds_a_token(one[way]) for one in rounds] for way in (False, True)}
    metrics = {
        **({"draft_acceptance_rate": sum(one.accepted for one in helped) / proposed} if proposed else {}),
        "draft_tokens_per_pass": sum(len(one.tokens) for one in helped) / passes,
        "draft_same_text_share": sum(
            one.tokens == other.tokens for one, other in zip(alone, helped, strict=True)
        )
        / len(helped),
        "draft_plain_tokens_per_s": 1 / median(each[False]),
        f"draft_{SPEED}": 1 / median(each[True]),
        **ratio_of(each[False], each[True]).metrics(f"draft_{SPEED}"),
    }
    details = {
        "prompts": [
            {
                "prompt": prompt,
                "tokens": len(one.tokens),
                "accepted": one.accepted,
                "proposed": one.draft_passes,
                "same_text": one.tokens == other.tokens,
            }
            for prompt, one, other in zip(config.prompts, helped, alone, strict=True)
        ],
        "seconds_a_token": {"alone": each[False], "with help": each[True]},
    }
    return metrics, details


def _seconds_a_token(texts: list[Written]) -> float:
    return sum(one.seconds for one in texts) / sum(len(one.tokens) for one in texts)
