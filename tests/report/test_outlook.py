"""Quality against tokens, from histories that are written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from resprout.tasks.recover.ladder import Climbed
from resprout.tasks.report.outlook import Outlook, Recovery, rung_rows, rung_sentences, rungs_of
from resprout.tasks.report.stage import in_order

TOKENS = 1000.0


def loss(tokens: float) -> float:
    """The law that the histories follow."""
    return 2.0 + 30.0 * (tokens + 400.0) ** -0.5


def training(begin: float, looks: int, first: int = 1, weight: float = 0.0, shift: float = 0.0) -> Recovery:
    """Steps of TOKENS tokens, each looked at; those before the last lie `shift` above the law."""
    history = [
        {
            "step": step + first, "loss": 3.0, "tokens": TOKENS,
            "held_out": loss(begin + TOKENS * (step + 1)) + shift * (step < looks - 1),
            **({"held_out_before": loss(begin)} if step == 0 else {}),
        }
        for step in range(looks)
    ]  # fmt: skip
    return Recovery(history, {"distill_weight": weight}, [])


HANDED_ON = Recovery([], {"recovery_steps": 0}, [])
RECONSTRUCTED = Recovery([{"step": 1, "tokens": 50.0, "layer": 0, "error": 0.1}], {}, [])


def of(parts: Sequence[tuple[int, float]]) -> list[Recovery]:
    """Trainings one after another, of so many looks each and with such a distill_weight."""
    found, begin = [], 0.0
    for looks, weight in parts:
        found.append(training(begin, looks, weight=weight, shift=0.2))
        begin += TOKENS * looks
    return found


def test_ends_of_trainings_are_fitted_where_there_are_several() -> None:
    """Looks in the middle lie higher, and are left out."""
    outlook = Outlook.of([*of([(2, 1.0), (4, 1.0), (8, 1.0)]), HANDED_ON])
    assert outlook.of_ends
    assert outlook.law is not None
    assert [at for at, _ in outlook.points] == [0, 2000, 6000, 14000]
    assert outlook.law.at(28_000).value == pytest.approx(loss(28_000), abs=0.01)
    assert "the ends of 3 trainings" in outlook.note
    assert "d = 0.50 (given" in outlook.note
    assert outlook.sentence.startswith(
        "Twice the tokens (28,000) would bring the held-out loss from 2.25 to "
    )
    assert "--continue-recovery 2x" in outlook.sentence


def test_one_training_is_fitted_by_its_looks_and_says_so() -> None:
    outlook = Outlook.of([training(0, 12)])
    assert not outlook.of_ends
    assert outlook.law is not None
    assert outlook.law.at(24_000).value == pytest.approx(loss(24_000), abs=0.01)
    assert "the 13 looks of the last training" in outlook.note
    assert "take it for a hint" in outlook.note


def test_the_best_weights_are_the_end_where_they_are_kept() -> None:
    worse = training(0, 3)
    worse.history[1]["held_out"] = 1.0  # type: ignore[index]
    parts = [worse, *of([(3, 0.0), (3, 0.0)])]
    assert [one for _, one in Outlook.of(parts, best=True).points][1] == 1.0
    assert [one for _, one in Outlook.of(parts).points][1] == worse.history[-1]["held_out"]


@pytest.mark.parametrize(
    ("recoveries", "points"),
    [
        # Another mix of losses, and another cut, is another scale.
        ([*of([(3, 0.0)]), training(3000, 5, weight=1.0)], 6),
        ([training(0, 3), training(3000, 2, first=4)], 3),
        ([training(0, 2), RECONSTRUCTED, training(2000, 5)], 6),
    ],
)
def test_only_what_compares_is_fitted(recoveries: list[Recovery], points: int) -> None:
    assert len(Outlook.of(recoveries).points) == points


def test_few_looks_say_so_and_none_say_nothing() -> None:
    assert Outlook.of([training(0, 2)]).sentence.endswith(
        "3 looks at the held-out slice are too few for a fit, which needs 4."
    )
    assert len(list(Outlook.of([training(0, 2)]).chart())) == 1
    unseen = Recovery([{"step": 1, "loss": 3.0, "tokens": 9.0}], {}, [])
    for none in ([], [HANDED_ON], [RECONSTRUCTED], [unseen]):
        outlook = Outlook.of(none)
        assert (outlook.sentence, outlook.note, list(outlook.chart())) == ("", "", [])


def judged(slope: float, noise: float) -> str:
    draw = np.random.default_rng(5).normal(0, noise, 16)
    history = [
        {
            "step": step + 1,
            "loss": 1.0,
            "tokens": 1000.0,
            "held_out": 2 + slope * (step + 2) ** -0.5 + draw[step],
        }
        for step in range(16)
    ]
    return Outlook.of([Recovery(history, {}, [])]).sentence


@pytest.mark.parametrize(
    ("slope", "noise", "words"),
    [
        (1.0, 1e-4, "so go on ("),
        (0.01, 1e-4, "which is no change that can be seen"),
        (0.1, 0.1, "which leaves open whether it pays"),
    ],
)
def test_the_sentence_says_whether_to_go_on(slope: float, noise: float, words: str) -> None:
    assert words in judged(slope, noise)


def test_the_picture_goes_to_four_times_the_tokens() -> None:
    (chart,) = Outlook.of([training(0, 12)]).chart()
    assert chart.title == "Quality against tokens"
    assert "its interval of 95 %" in chart.svg
    assert "50000" in chart.svg or "40000" in chart.svg


def test_rungs_in_words() -> None:
    rungs = [
        Climbed("lora", 12.34, 4200.0, 2.5, 2.25),
        Climbed("distill", 30.0, 900.0),
        Climbed("distill", skipped="the gate is met"),
    ]
    assert rung_sentences(rungs) == [
        "rung 1 (lora): 4,200 tokens in 12.3 s, held-out loss 2.5 to 2.25",
        "rung 2 (distill): 900 tokens in 30.0 s",
        "rung 3 (distill) was not climbed: the gate is met",
    ]
    assert rung_rows(rungs)[2] == ("rung 3", ["distill", "-", "-", "-", "-", "not climbed: the gate is met"])
    assert rungs_of([Recovery([], {}, rungs[:1]), Recovery([], {}, rungs), HANDED_ON]) == rungs
    assert rungs_of([HANDED_ON]) == ()


def test_recoveries_in_their_order() -> None:
    names = ["recovery", "recovery_10", "recovery_text", "recovery_2", "plan"]
    assert in_order(names) == ["recovery_2", "recovery_10", "recovery"]
