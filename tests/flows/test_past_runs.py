"""Earlier runs on a model: the newest first, those that compare, each result once, never the run itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from resprout.configs.result import VerdictResult
from resprout.flows.past_runs import earlier_runs, past_run, shipped_run

DENSE = {"params": 10.0, "bytes": 40.0, "w_ppl_seq8": 20.0}


def run(name: str, at: int, bytes_: float, ppl: float, dense: float = 20.0, **tags: str) -> Any:
    metrics = {"dense.params": 10.0, "dense.bytes": 40.0, "dense.w_ppl_seq8": dense}
    metrics |= {"pruned.params": 8.0, "pruned.bytes": 1.0, "recovered.params": 8.0}
    metrics |= {"recovered.bytes": bytes_, "recovered.w_ppl_seq8": ppl, "gate_passed": 1.0}
    info = SimpleNamespace(run_id=f"id-{name}", run_name=name, start_time=at * 86_400_000)
    return SimpleNamespace(info=info, data=SimpleNamespace(metrics=metrics, tags=tags, params={}))


class Finished:
    """MLflow with these finished runs."""

    def __init__(self, *runs: Any) -> None:
        self.runs, self.asked = runs, ""

    def concluded(self, having: str) -> list[Any]:
        self.asked = having
        return list(self.runs)


def test_runs_that_compare_newest_first_and_each_result_once() -> None:
    tracker = Finished(
        run("oldest", 1, 30.0, 25.0),
        run("again", 2, 30.0, 25.0),
        run("smaller", 3, 20.0, 33.0, **{"resprout.method": "flap", "resprout.gate": "passed"}),
        run("other-text", 4, 25.0, 26.0, dense=7.0),
        run("same-as-own", 5, 35.0, 22.0),
        run("own", 6, 35.0, 22.0),
    )
    found = earlier_runs(tracker, "id-own", "a/b", DENSE, {"bytes": 35.0, "w_ppl_seq8": 22.0})  # type: ignore[arg-type]
    assert [one.name for one in found] == ["smaller", "again"]
    assert tracker.asked == "params.model = 'a/b'"
    (first, _) = found
    assert (first.method, first.gate, first.made) == ("flap", "passed", "1970-01-04")
    assert list(first.models) == ["dense", "recovered"]
    assert first.last == {"params": 8.0, "bytes": 20.0, "w_ppl_seq8": 33.0}


def test_a_run_is_compared_as_what_it_shipped() -> None:
    one = run("a", 1, 30.0, 25.0, **{"resprout.ships": "gguf:Q4_0"})
    one.data.metrics |= {"summary/file_mb": 20e-6, "summary/file_ratio": 0.8, "gguf:Q4_0.w_ppl_seq8": 26.0}
    said = VerdictResult(sentence="s", judgement="j", tone="even")
    found = shipped_run(one, {"seed": 1}, said)
    assert found is not None
    assert found.models == {
        "dense": {**DENSE, "bytes": pytest.approx(25.0)},
        "gguf:Q4_0": {"w_ppl_seq8": 26.0, "bytes": pytest.approx(20.0)},
    }
    assert (found.verdict, found.config) == (said, {"seed": 1})
    before = shipped_run(run("of a release before", 1, 30.0, 25.0), {}, None)
    assert before is not None
    assert before.last["bytes"] == 30.0


def test_a_name_with_an_apostrophe_is_asked_for_in_other_quotes() -> None:
    tracker = Finished()
    earlier_runs(tracker, "", "it's", DENSE, DENSE)  # type: ignore[arg-type]
    assert tracker.asked == 'params.model = "it\'s"'


@pytest.mark.parametrize("gone", ["dense.params", "recovered.params"])
def test_a_run_without_two_models_is_none(gone: str) -> None:
    one = run("x", 1, 1.0, 1.0)
    for name in (gone, "pruned.params"):
        del one.data.metrics[name]
    assert past_run(one) is None
