"""A run that evaluates suites: few-shot, written answers, what was lost item by item, and a gate on that."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.load import load
from resprout.flows.check import check
from resprout.flows.validate import probe
from tiny_run import TWO_CHOICES, words, write_run

WRITTEN = {
    "task": "written",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["w5"], "do_sample": False},
    "filter_list": [
        {
            "name": "first",
            "filter": [{"function": "regex", "regex_pattern": "(w[0-9])"}, {"function": "take_first"}],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0, "capability": "writing"},
}
SUITE = {
    "batch_size": 8,
    "max_new_tokens": 12,
    "tasks": [
        {"task": "shown.yaml", "few_shot": 2, "capability": "choosing", "data": {"source": "rows.jsonl"},
         "examples": {"source": "examples.jsonl"}},
        {"task": "written.yaml", "data": {"source": "rows.jsonl"}},
    ],
}  # fmt: skip
ITEMS = 300
QUICK = dict.fromkeys(("select", "recover", "measure", "register"))


def write(root: Path, suite: dict[str, Any] = SUITE, **changes: Any) -> Path:
    """A run beside a folder with a suite, its tasks and their rows."""
    path = write_run(root, **{**QUICK, **changes})
    folder = root / "suites"
    folder.mkdir(exist_ok=True)
    rows = [
        {"question": words(5, at), "a": f"w{4 + at * 7 % 200}", "b": f"w{5 + at * 13 % 200}", "label": at % 2}
        for at in range(ITEMS + 20)
    ]
    for name, some in (("rows.jsonl", rows[:ITEMS]), ("examples.jsonl", rows[ITEMS:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "shown.yaml").write_text(yaml.safe_dump(TWO_CHOICES))
    (folder / "written.yaml").write_text(yaml.safe_dump(WRITTEN))
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    data = yaml.safe_load(path.read_text())
    data["evaluate"]["suites"] = ["suites/suite.yaml"]
    path.write_text(yaml.safe_dump(data))
    return path


def test_what_was_lost_is_known_item_by_item(resprout: Callable[..., Any], tmp_path: Path) -> None:
    bounds = {"choosing": 0.9, "writing": {"relative": 0.9}, "own": {"margin": 0.9}}
    path = write(tmp_path, gate={"max_drop": bounds}, prune={**HALF})
    trusted = tmp_path / "suites" / "written.yaml"
    function = "lm_eval:afrixnli/direct/prompt_2/utils.doc_to_target"
    trusted.write_text(yaml.safe_dump({**WRITTEN, "doc_to_target": function}))
    home, trust = tmp_path / "home", "evaluate.trust_task_code=true"
    done = resprout("run", path, trust, "--json", home=home)
    assert done.code == 0, done.err
    dense, pruned = done.result["models"]["dense"], done.result["models"]["pruned"]
    assert dense["losses"] == {}
    assert {name: one["tasks"] for name, one in pruned["losses"].items()} == {
        "choosing": ["shown"], "own": ["own"], "writing": ["written"],
    }  # fmt: skip
    choosing = pruned["losses"]["choosing"]
    assert choosing["items"] == ITEMS
    assert choosing["dense"] == pytest.approx(dense["metrics"]["shown_acc_norm"])
    assert choosing["drop"] == pytest.approx((choosing["lost"] - choosing["won"]) / ITEMS)
    assert pruned["losses"]["writing"]["cut"] == pruned["metrics"]["written_cut"]
    assert [one["name"] for one in done.result["gate"]["checks"]] == [
        "max_drop.choosing", "max_drop.own", "max_drop.writing",
    ]  # fmt: skip
    assert "lost by pruned against dense, on the same items:" in done.err

    reports = tmp_path / "home" / "reports" / "tiny"
    flips = [json.loads(line) for line in (reports / "flips.jsonl").read_text().splitlines()]
    counted = {(name, kind): 0 for name in pruned["losses"] for kind in ("lost", "won")}
    for one in flips:
        counted[one["capability"], one["kind"]] += 1
    assert sum(counted.values()), "nothing changed sides"
    assert counted == {
        (name, kind): one[kind] for name, one in pruned["losses"].items() for kind in ("lost", "won")
    }
    assert "What was lost, item by item" in (reports / "report.html").read_text()

    # Code that a task names is named wherever somebody decides whether to trust the run.
    code = f"written.yaml (sha256 {sha256(trusted.read_bytes()).hexdigest()}) is trusted: doc_to_target"
    (planned,) = resprout("plan", path, trust, "--json", home=home).result["trusted_code"]
    assert f"{code}: {function}" in planned
    assert code in (reports / "report.html").read_text()
    digest = next(one["artifact"]["digest"] for one in done.result["stages"] if one["name"] == "report")
    assert code in resprout("lineage", digest, "--config", path, home=home).out
    again = resprout("reproduce", digest, "--config", path, "--into", tmp_path / "a", home=home)
    assert again.code == 2
    assert "trusted Python code that its evaluation tasks name" in again.err

    failed = resprout(
        "run",
        path,
        "evaluate.trust_task_code=true",
        "gate={max_drop: {own: {margin: 0.001}}}",
        "--json",
        home=tmp_path / "home",
    )
    assert failed.code == 3
    assert "max_drop.own" in failed.result["message"]
    assert {one["name"] for one in failed.result["stages"] if not one["cached"]} <= {"gate", "report"}


HALF = {
    "method": "random",
    "units": ["ffn"],
    "target": {"params_ratio": 0.6},
    "round_to": 8,
    "repair": "none",
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ["gate={max_drop: {chosing: 0.1}}"],
            "chosing is no capability or task that is evaluated",
        ),
        (
            ["evaluate.suites.0.chat=true"],
            "evaluate.suites.0.chat: chat is true but the tokenizer has no chat",
        ),
        (["evaluate.suites.0.tasks.1.task=writen"], "unknown evaluation task 'writen'; "),
        (["evaluate.suites.0.tasks.1.task=lm_eval:gsm8q"], "did you mean lm_eval:gsm8k?"),
        (
            ["evaluate.suites.0.tasks.1.task=gsm8k"],
            "doc_to_target of task gsm8k uses answer, which row 1 of",
        ),
        (["evaluate.suites.0.tasks.0.examples.source=none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(
    change: list[str], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        check(load(write(tmp_path), change), probe)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_suite_can_be_named_and_changed(tmp_path: Path) -> None:
    path = write(tmp_path)
    suite = load(path, ["evaluate.suites.0.limit=7"]).config.evaluate.suites[0]
    assert (suite.limit, suite.batch_size, suite.tasks[0].name) == (7, 8, "shown")
    assert suite.tasks[0].data.source == str(tmp_path / "suites" / "rows.jsonl")
    named = load(path, ["evaluate.suites=[{suite: knowledge, limit: 3}]"]).config.evaluate.suites[0]
    assert (named.limit, len(named.tasks)) == (3, 5)
    check(load(path))
