"""A home that an audit finds sound, and a copy of it for each test that changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from audited import World, furnish, signer

from lineages import Writer
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.flows.workspace import Workspace
from resprout.infra.store.signing import Signer
from resprout.infra.store.store import ArtifactStore


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> tuple[Path, Writer, Signer]:
    home, own = tmp_path_factory.mktemp("audited"), signer()
    shutil.copy(mlflow_template, home / "mlflow.db")
    _, writer = furnish(home, ArtifactStore.from_config(StoreConfig(), home), own)
    return home, writer, own


@pytest.fixture
def world(template: tuple[Path, Writer, Signer], tmp_path: Path) -> World:
    from resprout.infra.mlflow.tracking import Tracker

    home, writer, own = template
    shutil.copytree(home, tmp_path / "home")
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    store.signer = own
    tracker = Tracker(MlflowConfig(), tmp_path / "home")
    tracker.connect()
    return World(Workspace(store, tracker, tmp_path / "home"), writer, own)
