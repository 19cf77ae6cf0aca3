"""A run that recovers on several selections: judged together, told with what is chance, found again, made
again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.tasks.select.comparison import QUALITY
from tiny_run import config, write_run

SELECT = config()["select"]
COMPARED = {**SELECT, "compare": ["longest", "random:mixed"], "compare_seeds": 2}


def test_selections_are_compared_on_one_schedule(resprout: Callable[..., Any], tmp_path: Path) -> None:
    path, home = write_run(tmp_path, select=COMPARED, measure=None, register=None), tmp_path / "home"
    # A random model ends no answer by itself; drawn, it soon comes upon one of many tokens.
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(20))}))
    ran = resprout("run", path, "--json", home=home)
    assert ran.code == 0, ran.err
    made = {stage["name"]: stage for stage in ran.result["stages"]}
    arms = [f"{name}:{seed}" for seed in (17, 18) for name in ("random", "longest", "random:mixed", "auto")]
    # The run's own by its own seed is the run's recovery.
    arms.remove("auto:17")
    for arm in arms:
        assert {f"select {arm}", f"recover {arm}", f"evaluate {arm}"} <= made.keys()
    assert {f"answer random:mixed:{seed}" for seed in (17, 18)} <= made.keys()
    store = Path(ran.result["exports"][0]["uri"].removeprefix("file://")).parents[1]
    digest = made["compare selections"]["artifact"]["digest"]
    found = json.loads((store / digest / "comparison.json").read_text())
    assert {one["name"] for one in found["arms"]} == {
        "no recovery",
        "random",
        "longest",
        "random:mixed",
        "auto",
    }
    assert all(len(one["bits per byte"]["seeds"]) == 2 for one in found["arms"])
    sentences = ran.result["selections"]
    assert sentences == found["sentences"]
    told = (
        ["By divergence", "By bits per byte", "By accuracy"] if found["sound"][QUALITY] else [f"By {QUALITY}"]
    )
    assert [one.split(",")[0] for one in sentences[: len(told)]] == told
    path_of_rows, wanted = tmp_path / "rows.jsonl", "random:mixed:18"
    run_id = ran.result["mlflow_run_id"]
    listed = resprout("rows", run_id, "--selection", wanted, "--to", path_of_rows, home=home)
    assert listed.code == 0, listed.err
    answered = json.loads(
        (store / made[f"answer {wanted}"]["artifact"]["digest"] / "summary.json").read_text()
    )
    assert len(path_of_rows.read_text().splitlines()) == answered["selected_rows"]
    # Values are those of the scores.
    scores = json.loads(
        (store / made["evaluate longest:18"]["artifact"]["digest"] / "metrics.json").read_text()
    )
    longest = next(one for one in found["arms"] if one["name"] == "longest")
    assert longest["bits per byte"]["seeds"][1] == pytest.approx(scores["words_bits_per_byte_seq32"])
    assert longest["divergence"]["seeds"][1] == pytest.approx(scores["words_kl_to_dense_seq32"])
    own = next(one for one in found["arms"] if one["name"] == "auto")
    recovered = ran.result["models"]["recovered"]["metrics"]
    assert own["bits per byte"]["seeds"][0] == pytest.approx(recovered["words_bits_per_byte_seq32"])
    report = Path(ran.result["report"]).with_suffix(".md").read_text()
    assert "### Selections compared" in report
    assert "| random:mixed | 2 |" in report
    assert "Selection by paser, mode auto" in report

    # Other rivals leave the ones before as they are, also where the work is shared out.
    others = ("select.compare=[longest,random:mixed,perplexity,paper]", "infra.shards=2")
    more = resprout("run", path, *others, "--json", home=home)
    assert more.code == 0, more.err
    fresh = {stage["name"] for stage in more.result["stages"] if not stage["cached"]}
    new = {
        f"{stage} {name}:{seed}"
        for stage in ("select", "recover", "evaluate")
        for name in ("perplexity", "paper")
        for seed in (17, 18)
    }
    # It does not draw, so that one selection serves every seed.
    assert fresh == {*new, "pool", "compare selections", "report"} - {"select perplexity:18"}

    again = resprout(
        "reproduce", made["export"]["artifact"]["digest"], "--into", tmp_path / "again", "--json", home=home
    )
    assert again.code == 0, again.err
    assert again.result["outcome"] == "identical"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("select.compare=[longst]", "unknown selection method 'longst'; did you mean 'longest'?"),
        ("select.compare=[random,random]", "names a selection twice"),
        ("select.compare=[Random]", "string should match pattern"),
        ("recover={ladder: auto, budget: {seconds: 9}}", "recover.ladder is not"),
        ("select.compare=[rds_plus]", "give select.capabilities.rows"),
        ("recover.budget={seconds: 9}", "recover.budget in seconds or money is not"),
        (
            "prune.schedule=cubic and select.compare=[] and select.paser.pilot_tokens=64",
            "pilot_tokens recovers a model",
        ),
        ("prune.schedule=cubic", "select.compare recovers a model that one cut has pruned"),
        (
            "select.compare=[released] and select.paser={dense: kept, embedder: tfidf}",
            "paser.dense is kept, which is kept for one of the two",
        ),
        ("select.paser={clusters: 200, landmarks: 100}", "give more landmarks than clusters"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    resprout: Callable[..., Any], tmp_path: Path, change: str, sentence: str
) -> None:
    path = write_run(tmp_path, select=COMPARED, measure=None)
    found = resprout("validate", path, *change.split(" and "), home=tmp_path / "home")
    assert found.code == 2
    assert sentence in found.err + found.out
