"""Files of few bits by hand: which wins at a size, the table, the bias, what the verdict is held against."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resprout.configs.result import GateResult
from resprout.tasks.report.files import against_fewer_bits, bias, file_rows, judged_models, note
from resprout.tasks.report.verdict import verdict

OURS, SAME, SMALLER, SOURCE = "gguf:Q4_0", "dense gguf:Q4_0", "dense gguf:Q2_K", "source file"


def windows(perplexity: float, spread: float = 0.01) -> list[list[float]]:
    """Eight windows of 10 tokens, their losses a little apart."""
    return [[10 * (math.log(perplexity) + spread * math.sin(place)), 10] for place in range(8)]


def metrics(megabytes: float, perplexity: float, **more: float) -> dict[str, float]:
    return {"bytes": 1e6 * megabytes, "w_ppl_seq8": perplexity, "w_kl_to_dense_seq8": 0.1, **more}


def timed(seconds: float) -> dict[str, Any]:
    times = {"seconds": [seconds * (1 + 0.001 * round_) for round_ in range(9)]}
    return {"decode8": times, "prefill8": times}


FILES = {OURS: metrics(88, 25), SAME: metrics(92, 22), SMALLER: metrics(88.5, 24), SOURCE: metrics(98, 21)}
SCORED = {name: windows(one["w_ppl_seq8"]) for name, one in FILES.items()}
TIMED = {OURS: timed(1.0), SMALLER: timed(1.5)}


def test_fewer_bits_win_where_a_file_of_the_dense_model_is_no_larger_and_better() -> None:
    (found,) = against_fewer_bits(FILES, SCORED, TIMED)
    # 88.5 MB are no more than 88 by more than a hundredth; 25/24 = 1.04, and 1.5 s against 1.0 s.
    assert found.rival == SMALLER
    assert found.lost
    assert found.worse.median == pytest.approx(25 / 24)
    assert found.sentence == (
        "Fewer bits win at this size: gguf:Q4_0 has x1.04 (x1.04-1.04) the perplexity of dense gguf:Q2_K, "
        "the dense model's best file that is no larger; it writes x1.50 (x1.50-1.50) as fast."
    )


def test_pruning_wins_where_its_file_is_the_better_one() -> None:
    better = {**SCORED, OURS: windows(23)}
    (found,) = against_fewer_bits({**FILES, OURS: metrics(88, 23)}, better, {})
    assert not found.lost
    assert found.sentence.startswith("Pruning wins at this size: gguf:Q4_0 has x0.96")
    assert "writes" not in found.sentence, "speeds were not measured"
    further = {**FILES, OURS: {**metrics(88, 23), "w_kl_to_dense_seq8": 0.25}}
    (found,) = against_fewer_bits(further, better, {})
    assert found.sentence.endswith(
        "file that is no larger; it lies further from the dense model (KL 0.2500 nats for 0.1000)."
    )


def test_a_difference_inside_the_noise_is_none() -> None:
    noisy = {**SCORED, OURS: [[10 * (3.2 + math.sin(3 * place)), 10] for place in range(8)]}
    (found,) = against_fewer_bits(FILES, noisy, {})
    assert not found.lost
    assert found.sentence.startswith("Too close to call at this size: gguf:Q4_0")


def test_where_all_files_of_the_dense_model_are_larger_there_is_no_rival() -> None:
    (found,) = against_fewer_bits({**FILES, OURS: metrics(80, 30)}, SCORED, {})
    assert found.sentence == "No file of the dense model that was compared is as small as gguf:Q4_0."
    assert not found.lost
    assert against_fewer_bits({OURS: FILES[OURS], SOURCE: FILES[SOURCE]}, SCORED, {}) == []


@pytest.mark.parametrize(
    ("source", "said"), [("gguf:Q4_1", True), ("gguf:F16", False), ("safetensors:bfloat16", False)]
)
def test_a_source_of_few_bits_is_said_to_favour_the_dense_model(source: str, said: bool) -> None:
    assert bias(source, FILES).startswith("The run began with a Q4_1 file") is said
    assert bias(source, {}) == ""


def test_the_table_has_a_row_for_each_file_the_larger_first() -> None:
    ratio = {"w_ppl_seq8_ratio": 1.25, "w_ppl_seq8_ratio_low": 1.2, "w_ppl_seq8_ratio_high": 1.3}
    even = {"decode8_tokens_per_s": 9.0, **{f"decode8_tokens_per_s_ratio{end}": value for end, value in
            {"": 1.1, "_low": 0.9, "_high": 1.3}.items()}}  # fmt: skip
    files = {OURS: metrics(88, 25, **ratio, **even), SOURCE: metrics(98, 21, decode8_tokens_per_s=8.0)}
    heads, rows = file_rows(files)
    assert heads == ("MB", "perplexity", "KL to dense", "decode8, tok/s")
    assert [row.label for row in rows] == [SOURCE, OURS]
    assert rows[1].cells == ("88.0", "25.00 (x1.25, x1.20-1.30)", "0.1000", "9.0 (no difference, x0.90-1.30)")
    _, brief = file_rows(files, brief=True)
    assert brief[1].cells == ("88.0", "25.00 x1.25", "0.1000", "9.0 =")
    assert "speeds against the source file's" in note(files)


def test_the_verdict_holds_the_file_against_the_source_file_and_against_fewer_bits() -> None:
    config = {"quantize": {"formats": [OURS]}}
    models = {"dense": metrics(500, 20), "recovered": metrics(480, 24)}
    name, held, lead = judged_models(config, models, FILES, SCORED)
    assert (name, list(held), lead) == (OURS, [SOURCE, OURS], "as gguf:Q4_0, against the source file: ")
    (rival,) = against_fewer_bits(FILES, SCORED, {})
    found = verdict(held, GateResult(passed=True, checks=[]), fewer_bits=rival, lead=lead)
    assert found.text == (
        "As gguf:Q4_0, against the source file: 10 % smaller, 19 % more perplexity, speed not measured: not "
        "worth it, dense gguf:Q2_K is better and no larger."
    )
    assert judged_models({}, models, FILES, SCORED) == (None, models, "")
    alone = {OURS: FILES[OURS]}
    assert list(judged_models(config, models, alone, SCORED)[1]) == ["dense", OURS]
