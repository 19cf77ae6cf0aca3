"""Whether an export computes what the model does that it was made from."""

from __future__ import annotations

from resprout.configs.errors import StageFailed
from resprout.tasks.export.probe import Probed


def largest_difference(name: str, expected: Probed, found: Probed, bound: float) -> float:
    """The largest absolute difference of a logit over all prompts and positions.

    Other prompt ids, other greedy text, another vocabulary, or a difference that is not within `bound` (a
    NaN is not) raises StageFailed.
    """
    if expected.input_ids != found.input_ids:
        raise StageFailed(
            f"the {name} export tokenizes the prompts differently; its tokenizer is not the model's"
        )
    shapes = [tuple(logits.shape) for logits in expected.logits], [tuple(x.shape) for x in found.logits]
    if shapes[0] != shapes[1]:
        raise StageFailed(
            f"the {name} export answers with logits of shapes {shapes[1]}, the model {shapes[0]}"
        )
    worst = max((a - b).abs().max().item() for a, b in zip(expected.logits, found.logits, strict=True))
    if not worst <= bound:
        raise StageFailed(
            f"logits of the {name} export differ by up to {worst:.6g} from the model's, where "
            f"export.max_abs_logit_diff allows {bound:g}; the export is discarded"
        )
    for prompt, (ours, theirs) in enumerate(zip(expected.greedy_ids, found.greedy_ids, strict=True)):
        if ours != theirs:
            raise StageFailed(
                f"the {name} export continues prompt {prompt} otherwise than the model under greedy "
                "decoding; the export is discarded"
            )
    return worst
