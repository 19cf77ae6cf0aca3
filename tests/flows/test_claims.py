"""Every tag of a version is held against records and run: each is forged in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.audit.verify import Examiner
from resprout.flows.place import Found, Place, find
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.store import ArtifactStore

VERSION = "models:/tiny-pruned/1"
TAGS = [
    "commit", "config_digest", "digest", "method", "plan", "record", "recovery", "report", "report_record",
    "run", "selection", "source", "source_digest", "version",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(finished: Any) -> Place:
    tracker = Tracker(MlflowConfig(), finished.home)
    tracker.connect()
    return Place(ArtifactStore.from_config(StoreConfig(), finished.home), tracker, finished.home)


@pytest.fixture(scope="module")
def version(place: Place) -> Found:
    return find(place, VERSION)


def retagged(version: Found, name: str, value: str | None) -> Found:
    tags = {**(version.tags or {}), f"resprout.{name}": value}
    if value is None:
        del tags[f"resprout.{name}"]
    forged = {"record": version.record, "digest": version.digest, name: value}
    return dataclasses.replace(version, tags=tags, record=forged["record"], digest=forged["digest"])


def examine(place: Place, found: Found) -> tuple[int, list[str]]:
    examiner = Examiner(place)
    examiner.version(found)
    result = examiner.result()
    return result.artifacts, result.problems


def test_a_version_as_registered_has_no_problem(place: Place, version: Found, finished: Any) -> None:
    artifacts, problems = examine(place, version)
    assert problems == []
    assert sorted(version.tags or {}) == [f"resprout.{name}" for name in TAGS]
    made = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    assert artifacts == len(made), "the seal names what was prepared for a stage's checks as well"


@pytest.mark.parametrize("name", TAGS)
def test_a_forged_tag_is_named(place: Place, version: Found, finished: Any, name: str) -> None:
    real = [stage["artifact"]["digest"] for stage in finished.result["stages"]]
    other = next(digest for digest in real if digest not in (version.tags or {}).values())
    for value in ("0" * 64, other, "nonsense"):
        _, problems = examine(place, retagged(version, name, value))
        assert any(f"resprout.{name}" in problem for problem in problems), (value, problems)


@pytest.mark.parametrize("name", [name for name in TAGS if name not in ("digest", "record")])
def test_a_removed_tag_is_named(place: Place, version: Found, name: str) -> None:
    _, problems = examine(place, retagged(version, name, None))
    assert any(f"tag resprout.{name} is missing" in problem for problem in problems)


def test_a_version_that_points_elsewhere_is_found(place: Place, version: Found) -> None:
    _, problems = examine(place, dataclasses.replace(version, source="file:///elsewhere/hf"))
    assert len(problems) == 1
    assert "the version's source is file:///elsewhere/hf" in problems[0]


def test_the_command_ends_with_four_and_names_the_tag(
    place: Place, version: Found, finished: Any, resprout: Callable[..., Any]
) -> None:
    real = (version.tags or {})["resprout.source"]
    place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": "hf://other/model"})
    try:
        found = resprout("verify", VERSION, "--json", home=finished.home)
    finally:
        place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": real})
    assert found.code == 4
    assert "tag resprout.source says hf://other/model, but" in found.err
    assert found.result["problems"]
