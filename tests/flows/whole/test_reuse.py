"""A version that was compressed again: the way down goes on from it, and the way up leads through it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lineages import Writer, write_lineage
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit import descendants
from resprout.flows.audit.export import lines
from resprout.flows.audit.lineage import lineage_of, read_results
from resprout.flows.audit.render import page
from resprout.flows.recorded_run import _report
from resprout.flows.workspace import Workspace
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def here(tmp_path: Path, mlflow_template: Path) -> tuple[Workspace, Writer]:
    """A run whose export is version 1 of small."""
    from resprout.infra.mlflow.tracking import Tracker

    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(mlflow_template, home / "mlflow.db")
    store = ArtifactStore.from_config(StoreConfig(), home)
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    place, writer = Workspace(store, tracker, home), write_lineage(store, tmp_path / "scratch")
    register(place, writer, "export")
    return place, writer


def register(place: Workspace, writer: Writer, name: str) -> None:
    digest, record = writer.made[name]
    tags = {"resprout.record": record, "resprout.digest": digest}
    run = place.tracker.start(name, {})
    place.tracker.make_version("small", place.store.uri(digest), run, tags, "")


def compress_again(writer: Writer, name: str, **origin: Any) -> None:
    """`name` is acquired from the origin, and `name`-export is made of it."""
    files = {"config.json": {}, "weights": name}
    writer.add(name, "acquire_model", "model", files, {}, config={"role": "model"}, origin=origin)
    writer.add(f"{name}-export", "export", "export", {"hf/weights": f"{name} again"}, {"model": name})


def test_the_way_down_goes_on_from_a_version_to_what_acquired_it(here: tuple[Workspace, Writer]) -> None:
    place, writer = here
    digest, record = writer.made["export"]
    files = {entry.path.removeprefix("hf/"): entry.sha256 for entry in place.store.manifest(digest).files}
    copied = {name: sha256 for name, sha256 in files.items() if name != "exports.json"}
    compress_again(writer, "tagged", uri="models:/gone/7", tags={"resprout.record": record})
    compress_again(writer, "named", uri="models:/small/1", given="models:/small@candidate")
    compress_again(writer, "placed", uri="models:/gone/8", source=f"{place.store.uri(digest)}/hf")
    compress_again(writer, "copied", uri="file:///copy", sha256=copied)
    compress_again(writer, "partly", uri="file:///part", sha256={**copied, "weights": "0" * 64})
    register(place, writer, "named-export")
    compress_again(writer, "third", uri="models:/small/2")
    register(place, writer, "third-export")
    for reference in ("hf://acme/tiny", "models:/small/1", writer.made["pruned"][0]):
        found = descendants.descendants_of(place, reference)
        reached = {name for name, (_, identity) in writer.made.items() if identity in found.order}
        again = {"tagged", "named", "placed", "copied", "third"}
        assert reached >= again | {f"{name}-export" for name in again}, reference
        assert not reached & {"partly", "partly-export"}
        assert found.as_dict()["versions"] == [f"small version {number}" for number in (1, 2, 3)]
    assert set(descendants.descendants_of(place, "models:/small/3").order) == {writer.made["third-export"][1]}


def test_the_way_up_leads_through_versions_to_the_first_source(here: tuple[Workspace, Writer]) -> None:
    place, writer = here
    compress_again(writer, "named", uri="models:/small/1", licence="mit")
    register(place, writer, "named-export")
    compress_again(writer, "third", uri="models:/small/2")
    story = lineage_of(place, writer.made["third-export"][0])
    stages = {writer.made[name][1] for name in ("model", "pruned", "export", "named-export")}
    assert stages <= set(story.nodes())
    data = story.as_dict()
    assert data["origins"] == {
        writer.made["third"][1]: writer.made["named-export"][1],
        writer.made["named"][1]: writer.made["export"][1],
    }
    assert data["records"][writer.made["third"][1]]["parents"] == []
    assert "apache-2.0" in {source.licence for _, source in story.sources()}
    facts = read_results(place.store, story)
    assert all(f"r-{identity}" in page(story, facts) for identity in stages)
    assert len(list(lines(story, place.store.root_uri))) == len(story.nodes())
    assert story.made is not None
    assert len(list(story.made.walk())) == 2


def test_a_tag_that_was_moved_to_what_was_made_of_it_leads_nowhere(here: tuple[Workspace, Writer]) -> None:
    place, writer = here
    compress_again(writer, "named", uri="models:/small/1")
    place.tracker.tag_version("small", "1", {"resprout.record": writer.made["named-export"][1]})
    story = lineage_of(place, writer.made["named-export"][0])
    assert set(story.nodes()) == {writer.made[name][1] for name in ("named", "named-export")}
    assert page(story, read_results(place.store, story))
    assert writer.made["named"][1] in descendants.descendants_of(place, writer.made["named"][1]).order


def test_of_several_reports_on_an_export_lineage_and_reproduce_take_the_newest(
    here: tuple[Workspace, Writer],
) -> None:
    place, writer = here
    digest, record = writer.made["export"]
    first = writer.made["report"][1]
    for name in ("later", "last"):
        writer.add(name, "report", "report", {"report.html": "same"}, {"export": "export"}, seed=len(name))
    last = writer.made["last"][1]
    for tags in ({}, {"resprout.report": writer.made["last"][0]}):
        place.tracker.tag_version("small", "1", tags)
        for reference in (digest, record, "models:/small/1"):
            story = lineage_of(place, reference)
            assert story.report is not None
            assert story.report.record_id == _report(place, reference) == last
    assert first != last
