"""What a draft proposes and what is accepted, against a loop without cache and against counts by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from resprout.tasks.draft.assisted import Writer, Written
from resprout.tasks.models.families import FAMILIES
from tiny_models import tiny_model

PROMPT = [5, 9, 13, 17]
NEW, PROPOSED = 12, 5


def greedy(model, ids: list[int]) -> Iterator[int]:
    """The most likely tokens one after another, each from all before it."""
    known = list(ids)
    while True:
        known.append(int(model(torch.tensor([known])).logits[0, -1].argmax()))
        yield known[-1]


def counted(target, draft) -> tuple[int, int, int]:
    """Accepted and proposed tokens and passes of the target, from the definition alone."""
    text, accepted, proposed, passes = list(PROMPT), 0, 0, 0
    while (left := NEW - (len(text) - len(PROMPT))) > 0:
        ours, theirs = greedy(target, text), greedy(draft, text)
        asked = min(PROPOSED, left - 1)
        offered = [next(theirs) for _ in range(asked)]
        kept = 0
        while kept < asked and next(ours) == offered[kept]:
            text.append(offered[kept])
            kept += 1
        text.append(next(greedy(target, text)))
        accepted, proposed, passes = accepted + kept, proposed + asked, passes + 1
    return accepted, proposed, passes


def test_a_model_accepts_all_of_its_own():
    """12 tokens are two passes of 5 proposed and one of its own."""
    written = Writer(tiny_model("llama"), tiny_model("llama"), 0, NEW, PROPOSED).write(PROMPT, True)
    assert (written.target_passes, written.draft_passes, written.accepted) == (2, 10, 10)
    alone = Writer(tiny_model("llama"), tiny_model("llama"), 0, NEW, PROPOSED).write(PROMPT, False)
    assert (alone.target_passes, alone.draft_passes) == (NEW, 0)
    assert alone.tokens == written.tokens


@pytest.mark.parametrize("noise", [0.02, 0.1, 1.0])
def test_counts_are_those_of_a_loop_without_cache(noise: float):
    target, draft = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in draft.parameters():
            parameter += noise * parameter.std() * torch.randn_like(parameter)
    written = Writer(target, draft, 0, NEW, PROPOSED).write(PROMPT, True)
    assert (written.accepted, written.draft_passes, written.target_passes) == counted(target, draft)
    plain = greedy(target, PROMPT)
    assert written.tokens == [next(plain) for _ in range(NEW)]


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_family_can_draft(model_type: str):
    """The text is the target's, also behind a draft that proposes other tokens."""
    target, draft = tiny_model(model_type), tiny_model(model_type, seed=1)
    writer = Writer(target, draft, 0, NEW, PROPOSED)
    helped, alone = writer.write(PROMPT, True), writer.write(PROMPT, False)
    assert helped.tokens == alone.tokens
    assert helped.draft_passes >= PROPOSED
    assert helped.seconds > 0
    assert replace(helped, seconds=0.0) == Written(
        alone.tokens, len(alone.tokens) - helped.accepted, helped.draft_passes, 0.0
    )
