"""A run whose recovery trains on the dense model's own answers: chosen once, answered, told, made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import config, write_run

SELECT = config()["select"]
MIXED = ("select.targets=mixed",)
SHORT = {"measure": None, "gate": None}


def test_rows_are_chosen_once_whoever_answers_them(resprout: Callable[..., Any], tmp_path: Path) -> None:
    path, home = write_run(tmp_path, select={**SELECT, "method": "random"}, **SHORT), tmp_path / "home"
    # A random model ends no answer by itself; drawn, it soon comes upon one of many tokens.
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(20))}))
    first = resprout("run", path, "--json", home=home)
    assert first.code == 0, first.err
    own = resprout("run", path, *MIXED, "--json", home=home)
    assert own.code == 0, own.err
    before, after = ({stage["name"]: stage for stage in done.result["stages"]} for done in (first, own))
    assert list(after) == [
        name for one in before for name in ((one, "answer") if one == "select" else (one,))
    ]
    assert after["select"]["cached"]
    assert not after["answer"]["cached"]
    assert after["recover"]["artifact"]["digest"] != before["recover"]["artifact"]["digest"]
    store = Path(own.result["exports"][0]["uri"].removeprefix("file://")).parents[1]
    chosen, answered = (
        [json.loads(line) for line in (store / one["artifact"]["digest"] / "selected.jsonl").open()]
        for one in (before["select"], after["answer"])
    )
    assert [row["id"] for row in chosen] == [row["id"] for row in answered]
    changed = [row for row, other in zip(answered, chosen, strict=True) if row["output"] != other["output"]]
    assert 0 < len(changed) == sum(row["targets"] == "self" for row in answered)
    said = f"Answers: the dense model's own for {len(changed)} of {len(chosen)} rows"
    assert said in Path(own.result["report"].removeprefix("file://")).with_suffix(".md").read_text()
    assert said in own.result["selection"]
    assert "Answers:" not in first.result["selection"]
    card = Path(own.result["exports"][0]["uri"].removeprefix("file://")) / "README.md"
    assert "rows for recovery answered by the model itself" in card.read_text()
    audit = resprout("audit", home=home)
    assert audit.code == 0, audit.err
    digest, folder = after["export"]["artifact"]["digest"], tmp_path / "again"
    again = resprout("reproduce", digest, "--into", folder, "--json", home=home)
    assert again.code == 0, again.err
    assert again.result["outcome"] == "identical"


def test_rounds_train_on_the_answers_too(resprout: Callable[..., Any], tmp_path: Path) -> None:
    prune = {
        "schedule": "cubic", "criterion": "magnitude", "repair": "none", "layout": "uniform",
        "units": ["ffn"], "target": {"params_ratio": 0.9}, "round_to": 8,
    }  # fmt: skip
    path = write_run(
        tmp_path,
        select={**SELECT, "method": "random", "targets": "mixed", "answers": {"temperature": 0}},
        prune=prune,
        register=None,
        **SHORT,
    )
    done = resprout("run", path, "--json", home=tmp_path / "home")
    assert done.code == 0, done.err
    # Greedy, a random model goes round in circles: where all rows keep theirs, the terminal says so.
    assert any("the dense model answered no row" in one for one in done.result["warnings"]), done.result
    names = [stage["name"] for stage in done.result["stages"]]
    assert names.count("answer") == 1
    first = next(name for name in names if name.startswith("recover "))
    assert names.index("select") < names.index("answer") < names.index(first)
