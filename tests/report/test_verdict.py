"""The verdict by hand: each judgement, and no ratio where the interval holds 1."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.configs.result import GateCheck, GateResult
from resprout.tasks.report.files import judged_models
from resprout.tasks.report.shipped import shipped
from resprout.tasks.report.verdict import BAD, EVEN, GOOD, verdict

DENSE = {"bytes": 100.0, "w_ppl_seq8": 20.0, "decode8_tokens_per_s": 10.0, "prefill8_tokens_per_s": 100.0}


def final(size: float, ppl: tuple[float, float, float] | None, **speeds: tuple[float, float, float]) -> Any:
    found: dict[str, float] = {**DENSE, "bytes": 100 * size}
    ratios = {"w_ppl_seq8": ppl, **{f"{name}_tokens_per_s": one for name, one in speeds.items()}}
    for name, ratio in ratios.items():
        if ratio is not None:
            found[name] = DENSE[name] * ratio[0]
            found |= dict(
                zip((f"{name}_ratio", f"{name}_ratio_low", f"{name}_ratio_high"), ratio, strict=True)
            )
    return {"dense": DENSE, "pruned": DENSE, "recovered": found}


SAME = (1.02, 0.97, 1.06)


@pytest.mark.parametrize(
    ("models", "text", "tone"),
    [
        (
            final(0.95, (1.11, 1.09, 1.13), decode8=SAME, prefill8=SAME),
            "5 % smaller, 11 % more perplexity, no faster on this machine: not worth it.",
            BAD,
        ),
        (
            final(0.8, (1.11, 1.09, 1.13), decode8=SAME, prefill8=(1.3, 1.2, 1.4)),
            "20 % smaller, 11 % more perplexity, 30 % faster at reading: worth it.",
            GOOD,
        ),
        (
            final(0.9, (1.11, 1.09, 1.13), decode8=(1.055, 1.02, 1.08)),
            "10 % smaller, 11 % more perplexity, 5.5 % faster at writing: too close to call.",
            EVEN,
        ),
        (
            final(0.95, SAME, decode8=(0.9, 0.85, 0.95)),
            "5 % smaller, no measurable difference in perplexity, 10 % slower at writing: not worth it.",
            BAD,
        ),
        (
            final(0.95, SAME, decode8=SAME),
            "5 % smaller, no measurable difference in perplexity, no faster on this machine: worth it.",
            GOOD,
        ),
        (
            final(1.0, SAME, decode8=SAME),
            "As large as before, no measurable difference in perplexity, no faster on this machine: not "
            "worth it, nothing was gained.",
            BAD,
        ),
        (
            final(0.5, None),
            "50 % smaller, perplexity without an interval, speed not measured: what it costs in quality is "
            "not known.",
            EVEN,
        ),
    ],
)
def test_a_sentence_for_each_outcome(models: Any, text: str, tone: str) -> None:
    found = verdict(models, None)
    assert (found.text, found.tone) == (text, tone)


def test_a_gate_that_is_not_passed_decides_alone() -> None:
    checks = [
        GateCheck(name=name, value=0.5, bound=0.5, passed=passed)
        for name, passed in (("max_kl_nats", False), ("max_params_ratio", True))
    ]
    found = verdict(final(0.2, SAME), GateResult(passed=False, checks=checks))
    assert found.judgement == "not worth it, outside the gate's bounds (max_kl_nats)"


def test_of_too_few_rounds_no_interval_of_95_percent_is_claimed() -> None:
    speed = verdict(final(0.95, (1.11, 1.09, 1.13), decode8=SAME), None, coverage=0.75).numbers[-1]
    assert speed.interval == "too few rounds for an interval of 95 %: measure.repeats is below 6"


def test_three_numbers_with_their_intervals() -> None:
    size, quality, speed = verdict(final(0.95, (1.11, 1.09, 1.13), decode8=SAME), None).numbers
    assert (size.value, size.interval) == ("−5 %", "counted, so exact")
    assert (quality.value, quality.interval) == ("+11 %", "interval of 95 %: +9 % to +13 %")
    assert (speed.value, speed.interval) == ("no difference", "interval of 95 %: −3 % to +6 %")
    assert quality.note.startswith("20.00 → 22.20")
    assert (size.tone, quality.tone, speed.tone) == (GOOD, BAD, "")
    assert speed.note == "about 10.0 tokens/s before and after, as far as this machine can tell"


FILE = ("gguf:Q4_1", 98.4e6)


@pytest.mark.parametrize(
    ("ships", "sentence", "judgement"),
    [
        (
            ("hf", 219.7e6),
            "The file that ships (hf, 219.7 MB) is 2.23 times as large as the one that came in (gguf:Q4_1, "
            "98.4 MB). As hf, against the source file: 2.2 times as large, 11 % more perplexity",
            "not worth it, the file is larger than the one that came in",
        ),
        (("hf", 78.7e6), "As hf, against the source file: 20 % smaller, 11 % more perplexity", "worth it"),
    ],
)
def test_a_model_is_judged_by_the_file_that_ships_against_the_one_that_came_in(
    ships: tuple[str, float], sentence: str, judgement: str
) -> None:
    """In memory it is 21 % smaller each time."""
    models = final(0.79, (1.11, 1.09, 1.13), decode8=SAME, prefill8=(1.3, 1.2, 1.4))
    exports = [{"format": ships[0], "bytes": ships[1] + 3e6, "weight_bytes": ships[1]}]
    found = shipped({}, exports, {"source_format": FILE[0], "source_bytes": FILE[1]})
    assert found is not None
    _, sized, lead = judged_models({}, models, {}, {}, found)
    shown = verdict(sized, None, lead=found.before(lead), larger=bool(found.larger))
    assert shown.sentence == f"{sentence}, 30 % faster at reading"
    assert shown.judgement == judgement
    adapter = [{"format": "peft", "bytes": 1.0}]
    assert shipped({}, adapter, {"source_bytes": 5}) is None, "an adapter is no model"
