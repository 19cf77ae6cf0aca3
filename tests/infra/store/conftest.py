from __future__ import annotations

import uuid

import pytest

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def s3_config(s3):
    """A prefix of its own in the bucket of the running server."""
    return StoreConfig(**s3.settings(f"{uuid.uuid4().hex}/store"))


@pytest.fixture(params=["local", "s3"])
def config(request, tmp_path):
    if request.param == "local":
        return StoreConfig(uri=str(tmp_path / "store"))
    return request.getfixturevalue("s3_config")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def store(config, home):
    return ArtifactStore.from_config(config, home)


@pytest.fixture
def folder(tmp_path):
    """A small artifact with a file in a subfolder."""
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_bytes(b"hello")
    (made / "sub" / "b.bin").write_bytes(bytes(range(256)) * 16)
    return made
