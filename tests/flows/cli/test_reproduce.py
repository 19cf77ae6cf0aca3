"""A finished run made again from its record: identical, or which stage first differs and by how much."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.configs.result import ArtifactResult, StageResult
from resprout.flows.audit.render import json_line
from resprout.flows.compare_runs import Change, Verdict, changes, judge
from resprout.flows.recorded_run import RecordedRun, recorded_run, refuse_impossible
from resprout.flows.stages import Steps
from resprout.flows.workspace import Workspace
from resprout.infra.store import tombstones
from resprout.infra.store.record import Parent
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.tombstones import Tombstone

VERSION = "models:/tiny-pruned@candidate"
ELSEWHERE = [Change("machine host", "one", "another")]


@pytest.fixture(scope="module")
def again(
    finished: Any, resprout: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    """The run once more where its source and data are gone, and the folder in which it was made."""
    folder = tmp_path_factory.mktemp("again") / "new"
    sources, aside = finished.config.parent, finished.config.parent.with_name("aside")
    aside.mkdir()
    moved = [path for path in sources.iterdir() if path != finished.home]
    before = snapshot(finished.home / "store")
    for path in moved:
        path.rename(aside / path.name)
    try:
        outcome = resprout("reproduce", VERSION, "--into", folder, "--json", home=finished.home)
    finally:
        for path in moved:
            (aside / path.name).rename(path)
        aside.rmdir()
    assert snapshot(finished.home / "store") == before, "the original's store is only read"
    return outcome, folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "tmp" not in path.parts
    }


def test_all_stages_make_the_same_bytes_without_the_sources(again: tuple[Any, Path], finished: Any) -> None:
    outcome, folder = again
    assert outcome.code == 0, outcome.err
    found = outcome.result
    assert found["outcome"] == "identical"
    assert found["first_difference"] is None
    made = {one["stage"]: one["made"] for one in found["stages"]}
    ran = {stage["name"]: stage["artifact"]["digest"] for stage in finished.result["stages"]}
    compared = [name for name in ran if not name.startswith(("acquire", "measure", "report"))]
    assert made == {name: ran[name] for name in compared}
    assert found["not_compared"] == ["measure", "report"]
    assert (folder / "report" / "report.html").is_file()
    assert found["folder"] == str(folder)
    assert "working in" in outcome.err


def test_every_stage_but_acquire_ran_anew_and_nothing_was_registered(
    again: tuple[Any, Path], finished: Any
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{again[1] / 'mlflow.db'}")
    assert client.search_registered_models() == []
    (experiment,) = [one for one in client.search_experiments() if one.name == "resprout"]
    runs = client.search_runs([experiment.experiment_id])
    nested = [run for run in runs if "resprout.stage" in run.data.tags]
    assert {run.data.tags["resprout.cached"] for run in nested} == {"false"}
    assert len(nested) == len(finished.result["stages"]) - 5
    (parent,) = [run for run in runs if "resprout.reproduces" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["resprout.reproduces"] == again[0].result["record"]


class Forged:
    """A copy of the original's store in which one stage's recorded result is replaced by another."""

    def __init__(self, finished: Any, folder: Path) -> None:
        shutil.copytree(finished.home / "store", folder / "store")
        self.place = Workspace(ArtifactStore.from_config(StoreConfig(), folder), mock.Mock(), folder)
        self.digests = {one["name"]: one["artifact"]["digest"] for one in finished.result["stages"]}
        (self.report,) = self.place.store.records_of(self.digests["report"])

    def replace(self, label: str, role: str, change: Callable[[Path], None]) -> None:
        """Let a report's record say that the stage made what `change` makes of its content."""
        store = self.place.store
        with store.workdir() as scratch, store.open(self.digests[label]) as content:
            shutil.copytree(content, scratch / "content")
            for file in (scratch / "content").rglob("*"):
                file.chmod(0o755)
            change(scratch / "content")
            other = store.publish(scratch / "content").digest
        report = store.get_record(self.report)
        parents = []
        for parent in report.parents:
            if parent.role == role:
                stage = store.get_record(parent.record).model_copy(update={"content": other})
                parents.append(Parent(role=role, digest=other, record=store.put_record(stage)))
            else:
                parents.append(parent)
        said = {**report.config, "digests": {**report.config["digests"], label: other}}
        self.report = store.put_record(report.model_copy(update={"config": said, "parents": tuple(parents)}))


@pytest.fixture
def forged(finished: Any, tmp_path: Path) -> Forged:
    return Forged(finished, tmp_path)


def stages(outcome: Any) -> list[StageResult]:
    """What the second run made, as the flow tells of it."""
    return [
        StageResult(
            name=one["stage"],
            stage="",
            role="",
            cached=False,
            seconds=1.0,
            artifact=ArtifactResult(kind="x", digest=one["made"], uri=""),
        )
        for one in outcome.result["stages"]
    ]


def judged(
    forged: Forged, again: tuple[Any, Path], elsewhere: list[Change] | None = None, tolerance: float = 0.01
) -> Verdict:
    run = recorded_run(forged.place, forged.report)
    now = ArtifactStore.from_config(StoreConfig(), again[1])
    return judge(run, stages(again[0]), forged.place.store, now, elsewhere or [], tolerance)


def edit_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data, indent=1, sort_keys=True))

    return edit


def test_another_plan_is_the_first_difference(forged: Forged, again: tuple[Any, Path]) -> None:
    def swap(plan: Any) -> None:
        kept = plan["layers"][1]["ffn"]
        free = next(unit for unit in range(1000) if unit not in kept)
        plan["layers"][1]["ffn"] = sorted([*kept[1:], free])

    forged.replace("plan", "plan", edit_json("plan.json", swap))
    found = judged(forged, again, ELSEWHERE)
    assert found.first == "plan"
    assert [one.says for one in found.differences] == ["2 ffn units that only one of both keeps, in layers 1"]
    # Every score is as recorded, so it is the same model as far as can be measured elsewhere.
    assert found.outcome == "within_tolerance"
    assert judged(forged, again).outcome == "different"


def test_other_weights_say_how_far_they_lie_apart(forged: Forged, again: tuple[Any, Path]) -> None:
    def move(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        path = folder / "hf" / "model.safetensors"
        tensors = load_file(path)
        name = max(tensors, key=lambda one: tensors[one].numel())
        tensors[name].view(-1)[0] += torch.tensor(0.25, dtype=tensors[name].dtype)
        save_file(tensors, path, metadata={"format": "pt"})

    forged.replace("export", "export", move)
    found = judged(forged, again)
    assert (found.outcome, found.first) == ("different", "export")
    (said,) = found.differences
    assert said.path == "hf/model.safetensors"
    assert said.says.startswith("1 of ")
    assert "at most by 0.25 absolute" in said.says


@pytest.mark.parametrize(
    ("factor", "elsewhere", "outcome"),
    [(1.005, ELSEWHERE, "within_tolerance"), (1.005, [], "different"), (1.05, ELSEWHERE, "different")],
)
def test_scores_count_within_the_tolerance_where_the_surroundings_differ(
    forged: Forged, again: tuple[Any, Path], factor: float, elsewhere: list[Change], outcome: str
) -> None:
    def worse(metrics: Any) -> None:
        name = next(name for name in metrics if "ppl" in name)
        metrics[name] *= factor

    forged.replace("evaluate recovered", "recovered", edit_json("metrics.json", worse))
    found = judged(forged, again, elsewhere)
    assert (found.outcome, found.first) == (outcome, "evaluate recovered")
    ((name, apart),) = found.metrics.items()
    assert name.startswith("recovered.")
    assert apart == pytest.approx(1 - 1 / factor)


@pytest.mark.parametrize(
    ("more", "apart", "outcome"),
    [(1e-7, 1e-7, "within_tolerance"), (0.02, 0.0198013, "different")],  # 1 - exp(-0.02)
)
def test_a_divergence_counts_in_nats_as_the_logarithm_of_a_perplexity_does(
    forged: Forged, again: tuple[Any, Path], more: float, apart: float, outcome: str
) -> None:
    def move(metrics: Any) -> None:
        name = next(name for name in metrics if "_kl_to_dense" in name)
        assert metrics[name] < 0.02, "relative to itself any of these would be far off"
        metrics[name] += more

    forged.replace("evaluate pruned", "pruned", edit_json("metrics.json", move))
    found = judged(forged, again, ELSEWHERE)
    assert list(found.metrics.values()) == pytest.approx([apart], rel=1e-5)
    assert found.outcome == outcome


def test_another_verdict_of_the_gate_is_no_reproduction(forged: Forged, again: tuple[Any, Path]) -> None:
    forged.replace("gate", "gate", edit_json("gate.json", lambda gate: gate.update(passed=False)))
    assert judged(forged, again, ELSEWHERE).outcome == "different"


def test_content_that_was_freed_still_differs(forged: Forged, again: tuple[Any, Path]) -> None:
    forged.replace("gate", "gate", edit_json("gate.json", lambda gate: gate.update(passed=False)))
    other = recorded_run(forged.place, forged.report).digests["gate"]
    forged.place.store.driver.delete(f"manifests/{other}.json")
    found = judged(forged, again)
    assert (found.outcome, found.first) == ("different", "gate")
    assert "by how much is not known" in found.differences[0].says


def test_scores_that_only_one_run_has_lie_infinitely_far_apart_and_stay_json(
    forged: Forged, again: tuple[Any, Path]
) -> None:
    def drop(metrics: Any) -> None:
        del metrics[next(name for name in metrics if "ppl" in name)]

    forged.replace("evaluate recovered", "recovered", edit_json("metrics.json", drop))
    found = judged(forged, again, ELSEWHERE)
    assert list(found.metrics.values()) == [float("inf")]
    said = json.loads(json_line(found.as_dict()), parse_constant=pytest.fail)
    assert list(said["metrics_apart"].values()) == [None]


def test_a_tolerance_is_a_number() -> None:
    from resprout.flows.cli.reproduce import reproduce

    for tolerance in (float("inf"), float("nan")):
        with pytest.raises(BadInput, match="--tolerance is"):
            reproduce("x", tolerance=tolerance, device=None)


@pytest.fixture
def here() -> Iterator[None]:
    """The command in this process; what it sets in the environment does not outlive the test."""
    with mock.patch.dict(os.environ):
        yield


def test_the_command_ends_with_4_and_names_the_stage(
    forged: Forged,
    again: tuple[Any, Path],
    here: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    api_url: str,
) -> None:
    from resprout.flows.cli.reproduce import reproduce

    def instead(run: RecordedRun, before: Any, folder: Path, session: Any) -> ArtifactStore:
        assert before.read_only
        session.result.stages.extend(stages(again[0]))
        return ArtifactStore.from_config(StoreConfig(), again[1])

    monkeypatch.setattr("resprout.flows.reproduce.run_again", instead)
    monkeypatch.setenv("RESPROUT_HOME", str(tmp_path))
    forged.replace("gate", "gate", edit_json("gate.json", lambda gate: gate.update(passed=False)))
    into = tmp_path / "into"
    with pytest.raises(VerificationFailed) as error:
        reproduce(forged.report, into=into, tolerance=0.0, device=None, trust_remote_code=False, config=None)
    assert f"{forged.report}: not reproduced: 13 of 14 stages made identical bytes" in str(error.value)
    assert "the first that differs is gate: gate.json 1 of" in str(error.value)
    assert str(into) in str(error.value)
    with pytest.raises(BadInput, match="is not empty"):
        reproduce(
            forged.report, into=tmp_path, tolerance=0.0, device=None, trust_remote_code=False, config=None
        )


def test_an_export_and_a_report_lead_to_the_run_and_other_digests_do_not(forged: Forged) -> None:
    by_report = recorded_run(forged.place, forged.report)
    for name in ("report", "export"):
        found = recorded_run(forged.place, forged.digests[name])
        assert (found.record_id, found.nodes) == (by_report.record_id, by_report.nodes)
    with pytest.raises(BadInput, match="only those can be reproduced"):
        recorded_run(forged.place, forged.digests["calibrate"])


def test_what_cannot_work_is_refused_in_a_sentence(forged: Forged, tmp_path: Path) -> None:
    run, store = recorded_run(forged.place, forged.report), forged.place.store

    def refusal(run: RecordedRun) -> str:
        with pytest.raises(BadInput) as error:
            refuse_impossible(run, store, tmp_path, trust_remote_code=False)
        return str(error.value)

    refuse_impossible(run, store, tmp_path, trust_remote_code=False)
    assert "--device cpu" in refusal(replace(run, device="cuda"))
    model = run.config.model.model_copy(update={"trust_remote_code": True})
    trusting = replace(run, steps=Steps(run.config.model_copy(update={"model": model})))
    assert "--trust-remote-code" in refusal(trusting)
    refuse_impossible(trusting, store, tmp_path, trust_remote_code=True)
    rows = forged.digests["acquire pool"]
    stone = Tombstone(
        digest=rows, files={}, tracked={}, reason="somebody asked", who="me", when="2026-01-02T00:00:00+00:00"
    )
    tombstones.put(store.driver, store.signer, stone)
    said = f"the pool of this run (artifact {rows}) was erased on 2026-01-02: somebody asked; without it"
    assert said in refusal(run)
    store.driver.delete(f"tombstones/{rows}.json")
    store.driver.delete(f"manifests/{rows}.json")
    assert f"the pool of this run (artifact {rows}) is not whole" in refusal(run)


def test_differences_in_the_surroundings_are_named(forged: Forged) -> None:
    (record_id,) = forged.place.store.records_of(forged.digests["plan"])
    record = forged.place.store.get_record(record_id)
    other = record.model_copy(
        update={
            "code": {**record.code, "resprout": "0.0.1", "commit": "f" * 40},
            "libraries": {**record.libraries, "torch": "1.0"},
            "machine": {**record.machine, "host": "elsewhere"},
        }
    )
    found = [str(one) for one in changes([other, other], "cuda", {"cpu": "another"})]
    assert [one.partition(":")[0] for one in found if "dirty" not in one] == [
        "code resprout", "code commit", "library torch", "machine host", "hardware cpu", "device",
    ]  # fmt: skip
    assert found[-1] == "device: cpu then, cuda now"
