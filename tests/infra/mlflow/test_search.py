"""Searches on a real SQLite database."""

from __future__ import annotations

from pathlib import Path

import pytest

from resprout.configs.infrastructure import MlflowConfig
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import Tracker


@pytest.mark.parametrize("name", ["plain", "it's", 'a "b"', "a\\b"])
def test_a_model_is_found_whatever_its_name_holds(tmp_path: Path, name: str) -> None:
    tracker = Tracker(MlflowConfig(), tmp_path)
    tracker.connect()
    assert not search.is_registered(tracker, name)
    for one in (name, f"{name}2"):
        tracker.client.create_registered_model(one)
        tracker.client.create_model_version(one, "s3://bucket/model")
    assert search.is_registered(tracker, name)
    assert [one.name for one in search.versions(tracker, search.named(name))] == [name]
