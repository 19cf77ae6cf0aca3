"""What MLflow's pages say of a run, with names and sources from outside."""

from __future__ import annotations

from typing import Any

from resprout.configs.result import (
    ArtifactResult,
    GateCheck,
    GateResult,
    RegisteredResult,
    StageResult,
)
from resprout.flows.mlflow_pages import MAX_CHARS, RunPage, describe_run, describe_version, fitting
from resprout.infra.lineage import Node
from resprout.infra.store.record import Record
from resprout.tasks.core.run import Nested

HERE = RunPage("7", "r" * 32)
EVIL = "<img src=https://evil>` [x](https://evil)"


def node(stage: str, **more: Any) -> Node:
    given: dict[str, Any] = {
        "stage": stage, "key": "k", "kind": "x", "content": "c" * 64, "config": {}, "code": {},
        "libraries": {}, "machine": {}, "who": "me", "started": "then", "seconds": 1.0, **more,
    }  # fmt: skip
    return Node(f"{stage}{len(more)}", Record(**given), ())


def described(stages: int = 2, **changes: Any) -> str:
    model = node("acquire_model", origin={"given": EVIL}, licence="apache-2.0")
    data = node(
        "acquire_rows", origin={"sources": [{"given": "rows.jsonl", "licence": EVIL}, {"uri": "hf://x"}]}
    )
    top = Node("top", node("report").record, (("source", model), ("rows", data)))
    given: dict[str, Any] = {
        "here": HERE,
        "lineage": top,
        "code_identity": {"resprout": "1.0", "commit": "f" * 40, "dirty": "true"},
        "gate": GateResult(passed=True, checks=[GateCheck(name="a", value=1, bound=2, passed=True)]),
        "registered": RegisteredResult(name="m", version="3", alias=None),
        "stages": [
            StageResult(
                name=f"stage {index}",
                stage="stage",
                role=f"{index}",
                cached=index > 0,
                seconds=1,
                artifact=ArtifactResult(kind="x", digest=f"{index:064x}", uri=""),
            )
            for index in range(stages)
        ],
        "nested": {"stage 0": Nested("n0", None), "stage 1": Nested("n1", "#/experiments/2/runs/old")},
    }
    return describe_run(**{**given, **changes})


def test_a_run_leads_to_version_files_stages_and_makers() -> None:
    lines = described().splitlines()
    run = f"#/experiments/7/runs/{HERE.run_id}"
    assert lines[0] == (
        "A compression run: the gate passed, registered as [m version 3](#/models/m/versions/3). See the "
        f"[report]({run}/artifacts/report/report.html), the [pruning plan]({run}/artifacts/plan.json) and "
        f"the [config]({run}/artifacts/config.json)."
    )
    assert f"commit `ffffffffffff` with [uncommitted changes]({run}/artifacts/uncommitted.patch)" in lines[2]
    assert "`resprout reproduce models:/m/3`" in described()
    assert lines[-2:] == [
        "    - [stage 0](#/experiments/7/runs/n0): `000000000000`, made here",
        "    - [stage 1](#/experiments/7/runs/n1): `000000000000`, "
        "made by [another run](#/experiments/2/runs/old)",
    ]


def test_sources_and_licences_are_named_and_stay_text() -> None:
    text = described()
    fenced = f"`` {EVIL} ``"
    assert f"- Source model {fenced}, licence `apache-2.0`, artifact `cccccccccccc`" in text
    assert f"- Recovery data `rows.jsonl`, licence {fenced}" in text
    assert "- Recovery data `hf://x`, licence `unknown`" in text


def test_a_run_without_gate_or_version_says_so() -> None:
    none = described(
        gate=GateResult(passed=True, checks=[]), registered=None, code_identity={"resprout": "1"}
    )
    assert none.startswith("A compression run: no gate was set, nothing was registered.")
    assert "commit" not in none
    assert "resprout verify" not in none
    bad = GateResult(passed=False, checks=[GateCheck(name="a", value=3, bound=2, passed=False)])
    assert described(gate=bad, registered=None).startswith("A compression run: the gate not passed, nothing")


def test_what_mlflow_would_cut_is_cut_at_a_line_and_said() -> None:
    text = described(stages=300)
    assert len(text) <= MAX_CHARS
    assert text.endswith("\n\n(cut here: MLflow keeps no more)")
    assert "- Stages" in text
    assert fitting(["a", "b"], 10) == "a\nb"
    assert len(describe_version(HERE, "n", "x\n" * 5000)) <= MAX_CHARS
