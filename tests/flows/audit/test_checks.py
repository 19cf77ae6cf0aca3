"""Every tag of a version is held against records and run: each is forged in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from resprout.configs.schema import MlflowConfig, StoreConfig
from resprout.flows.audit.evidence import Version
from resprout.flows.audit.verification import Verification
from resprout.flows.place import Place
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
def version(place: Place) -> Version:
    return Verification(place).evidence.version(VERSION)


def retagged(version: Version, name: str, value: str | None) -> Version:
    tags = {key: one for key, one in version.tags.items() if key != f"resprout.{name}"}
    return dataclasses.replace(version, tags=tags | ({f"resprout.{name}": value} if value else {}))


def examine(place: Place, version: Version) -> tuple[int, list[str]]:
    verification = Verification(place)
    verification.version(version)
    result = verification.result()
    return result.artifacts, result.problems


def test_a_version_as_registered_has_no_problem(place: Place, version: Version, finished: Any) -> None:
    artifacts, problems = examine(place, version)
    assert problems == []
    assert sorted(version.tags) == [f"resprout.{name}" for name in TAGS]
    made = {stage["artifact"]["digest"] for stage in finished.result["stages"]}
    assert artifacts == len(made), "the seal names what was prepared for a stage's checks as well"


@pytest.mark.parametrize("name", TAGS)
def test_a_forged_tag_is_named(place: Place, version: Version, finished: Any, name: str) -> None:
    real = [stage["artifact"]["digest"] for stage in finished.result["stages"]]
    other = next(digest for digest in real if digest not in version.tags.values())
    for value in ("0" * 64, other, "nonsense"):
        _, problems = examine(place, retagged(version, name, value))
        assert any(f"resprout.{name}" in problem for problem in problems), (value, problems)


@pytest.mark.parametrize("name", [name for name in TAGS if name not in ("digest", "record")])
def test_a_removed_tag_is_named(place: Place, version: Version, name: str) -> None:
    _, problems = examine(place, retagged(version, name, None))
    assert any(f"tag resprout.{name} is missing" in problem for problem in problems)


def test_a_version_that_points_elsewhere_is_found(place: Place, version: Version) -> None:
    _, problems = examine(place, dataclasses.replace(version, source="file:///elsewhere/hf"))
    assert len(problems) == 1
    assert "the version's source is file:///elsewhere/hf" in problems[0]


def test_the_command_ends_with_four_and_names_the_tag(
    place: Place, version: Version, finished: Any, resprout: Callable[..., Any]
) -> None:
    real = version.tags["resprout.source"]
    place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": "hf://other/model"})
    try:
        found = resprout("verify", VERSION, "--json", home=finished.home)
    finally:
        place.tracker.tag_version("tiny-pruned", "1", {"resprout.source": real})
    assert found.code == 4
    assert "tag resprout.source says hf://other/model, but" in found.err
    assert found.result["problems"]
