"""Several runs on one page: the front, what is not comparable, settings that differ, hostile names."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.configs.result import ShippedResult, VerdictResult
from resprout.tasks.report.compare import comparison_page, differences, front
from resprout.tasks.report.past_run import PastRun, as_shipped

DENSE = {"params": 200.0, "bytes": 4e6, "w_ppl_seq8": 20.0, "decode8_tokens_per_s": 10.0}


def run(name: str, bytes_: float, ppl: float, dense: dict[str, float] = DENSE, **more: Any) -> PastRun:
    last = {"params": 150.0, "bytes": bytes_, "w_ppl_seq8": ppl, "decode8_tokens_per_s": 12.0}
    for metric, value, low, high in (
        ("w_ppl_seq8", ppl / 20, ppl / 25, ppl / 18),
        ("decode8_tokens_per_s", 1.2, 0.9, 1.5),
    ):
        last |= {f"{metric}_ratio": value, f"{metric}_ratio_low": low, f"{metric}_ratio_high": high}
    return PastRun(name=name, models={"dense": dense, "pruned": last}, **more)


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 5), (2, 4), (3, 4.5), (4, 1)], [(1, 5), (2, 4), (4, 1)]),
        ([(1, 1), (2, 2)], [(1, 1)]),
        ([(1, 2), (1, 1), (1, 1)], [(1, 1)]),
        ([], []),
    ],
)
def test_the_front_is_what_none_beats(
    points: list[tuple[float, float]], best: list[tuple[float, float]]
) -> None:
    assert front(points) == best


def test_the_page_numbers_the_runs_and_prints_no_ratio_inside_the_noise() -> None:
    page = comparison_page(
        "Two", "on a model", [run("first", 3e6, 30.0, gate="passed"), run("second", 2e6, 24.0)]
    ).text
    for text in ("30.00 (x1.50, x1.20-1.67)", "24.00 (no difference, x0.96-1.33)", "3.0 (x0.75)"):
        assert text in page
    assert "x1.20</" not in page
    for name in ("size", "speed"):
        assert f'id="figure-{name}"' in page
    assert "All settings are the same." in page


def test_a_run_on_another_text_is_in_the_table_and_not_in_the_pictures() -> None:
    other = run("elsewhere", 1e6, 22.0, dense={**DENSE, "w_ppl_seq8": 7.0})
    page = comparison_page("Two", "", [run("first", 3e6, 30.0), other]).text
    assert "another model or text" in page
    assert ">2</text>" not in page
    assert ">1</text>" in page


def test_what_ships_is_compared_by_its_file_and_its_verdict_is_that_of_the_report() -> None:
    dense, pruned = run("one", 3e6, 30.0).models.values()
    file = {**pruned, "w_ppl_seq8": 31.0, "decode8_tokens_per_s": 70.0}
    files = {"gguf:Q4_0": file, "source file": {"w_ppl_seq8": 20.1, "decode8_tokens_per_s": 60.0}}
    models = {"dense": dense, "pruned": pruned}
    ships = ShippedResult(format="gguf:Q4_0", bytes=2e6, source_format="gguf:Q4_1", source_bytes=1e6)
    found = as_shipped(models, files, ships)
    assert list(found) == ["dense", "gguf:Q4_0"]
    assert found["dense"] == {**DENSE, "bytes": 1e6, "decode8_tokens_per_s": 60.0}
    assert found["gguf:Q4_0"] == {**file, "bytes": 2e6}
    assert as_shipped(models, {}, ships) == {
        "dense": {**DENSE, "bytes": 1e6},
        "pruned": {**pruned, "bytes": 2e6},
    }
    assert as_shipped(models, files, None) == models
    assert "decode8_tokens_per_s" not in as_shipped(models, {"gguf:Q4_0": file}, ships)["dense"]
    page = comparison_page("One", "", [PastRun(name="one", models=found)]).text
    assert "2.0 (x2.00)" in page
    assert "the file is larger than the one that came in" in page
    said = VerdictResult(sentence="It is: so.", judgement="as the report has it", tone="good")
    page = comparison_page("One", "", [PastRun(name="one", models=found, verdict=said)]).text
    assert '<strong class="good">as the report has it</strong>' in page


def test_settings_that_differ_and_those_alone() -> None:
    one = {"seed": 1, "prune.units": ["ffn"], "select.method": "paser"}
    two = {"seed": 1, "prune.units": ["ffn", "heads"]}
    assert differences([one, two]) == [
        ("prune.units", ['["ffn"]', '["ffn", "heads"]']),
        ("select.method", ["paser", "-"]),
    ]


def test_names_and_settings_of_others_are_escaped() -> None:
    hostile = "<script>alert(1)</script>"
    runs = [run(hostile, 3e6, 30.0, config={hostile: "a"}, method=hostile), run("b", 2e6, 24.0)]
    page = comparison_page(hostile, hostile, runs, {hostile: hostile}).text
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_sweep_without_a_result_has_a_page_too() -> None:
    page = comparison_page("Sweep", "", [], {"a": "failed"}).text
    assert "<figure" not in page
    assert "failed" in page
