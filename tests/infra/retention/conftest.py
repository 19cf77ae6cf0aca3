from __future__ import annotations

import pytest

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def store(home):
    return ArtifactStore.from_config(StoreConfig(), home)


@pytest.fixture
def root(home):
    """Folder of the store."""
    return home / "store"


@pytest.fixture
def locks(store):
    manager = LeaseLockManager(store.driver)
    yield manager
    manager.close()
