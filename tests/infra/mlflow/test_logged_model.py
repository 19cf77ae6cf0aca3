"""The LoggedModel behind a version, on a real SQLite registry: its metrics, data and links."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from resprout.infra.mlflow.logged_model import (
    Measured,
    ModelPage,
    begin_model,
    folder_of,
    keep_in_model,
    link_version,
    point_outside,
)
from resprout.infra.mlflow.tracking import Tracker

MLMODEL = yaml.safe_dump({"flavors": {"transformers": {"task": "text-generation", "model_binary": "."}}})
PAGE = ModelPage(
    MLMODEL,
    {"method": "flap"},
    (Measured({"words_ppl": 12.5}, "evaluation text", "ab" * 32), Measured({"params": 88384.0})),
)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    from resprout.configs.infrastructure import MlflowConfig

    made = Tracker(MlflowConfig(experiment="tests"), tmp_path_factory.mktemp("home"))
    made.connect()
    return made


def test_metrics_stand_on_model_and_run_each_with_its_data(tracker: Tracker) -> None:
    run = tracker.start("r", {})
    model = begin_model(tracker, run, "qwen2.5:small/one", {"resprout.digest": "cd" * 32}, PAGE)
    assert model.name == "qwen2-5-small-one", "MLflow takes no such signs in the name"
    found = tracker.client.get_logged_model(model.model_id)
    on = {one.key: (one.value, one.dataset_name, one.dataset_digest) for one in found.metrics}
    assert on == {
        "words_ppl": (12.5, "evaluation text", ("ab" * 32)[:36]),
        "params": (88384.0, None, None),
    }
    assert found.params == {"method": "flap"}
    assert found.tags["resprout.digest"] == "cd" * 32
    assert tracker.run(run).data.metrics == {"words_ppl": 12.5, "params": 88384.0}
    assert [one.model_id for one in tracker.run(run).outputs.model_outputs] == [model.model_id]


def test_a_run_that_goes_on_takes_the_model_that_it_began(tracker: Tracker) -> None:
    run = tracker.start("r", {})
    first = begin_model(tracker, run, "name", {}, PAGE)
    assert begin_model(tracker, run, "name", {}, PAGE).model_id == first.model_id
    assert folder_of(tracker, run) == first.artifact_location
    assert folder_of(tracker, tracker.start("another", {})) is None


def test_a_model_that_lies_elsewhere_says_where_and_which_flavour(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.start("r", {})
    model = begin_model(tracker, run, "name", {}, PAGE)
    point_outside(tracker, model, "s3://bucket/content/hf", MLMODEL)
    link_version(tracker, model.model_id, "name", "3", MLMODEL)
    found = tracker.client.get_logged_model(model.model_id)
    assert found.status == "READY"
    assert json.loads(found.tags["mlflow.modelVersions"]) == [{"name": "name", "version": "3"}]
    assert 'mlflow.transformers.load_model("models:/name/3")' in found.tags["mlflow.note.content"]
    folder = tracker.files.folder(found.artifact_location)
    assert folder is not None
    (kept,) = folder.iterdir()
    stated = yaml.safe_load(kept.read_text())
    assert stated["flavors"] == yaml.safe_load(MLMODEL)["flavors"]
    assert (stated["run_id"], stated["metadata"]["source"]) == (run, "s3://bucket/content/hf")


def test_a_copy_is_what_the_folder_holds(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "components").mkdir()
    (tmp_path / "MLmodel").write_text(MLMODEL)
    (tmp_path / "components" / "tokenizer.json").write_text("{}")
    model = begin_model(tracker, tracker.start("r", {}), "name", {}, PAGE)
    address = keep_in_model(tracker, model, tmp_path)
    folder = tracker.files.folder(address)
    assert folder is not None
    held = {one.relative_to(folder).as_posix(): one.read_text() for one in folder.rglob("*") if one.is_file()}
    assert held == {"MLmodel": MLMODEL, "components/tokenizer.json": "{}"}
