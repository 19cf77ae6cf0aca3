from __future__ import annotations

import importlib.util
import sys
import uuid
from pathlib import Path

import pytest

from resprout.configs.schema import StoreConfig
from resprout.infra.store.store import ArtifactStore

SERVER = "resprout_test_s3_server"
if SERVER not in sys.modules:
    # Test folders are no packages; both rooms that need the server must get the same one.
    spec = importlib.util.spec_from_file_location(SERVER, Path(__file__).with_name("server.py"))
    sys.modules[SERVER] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[SERVER])
server_module = sys.modules[SERVER]


@pytest.fixture(scope="session")
def s3():
    with server_module.s3_server() as server:
        yield server


@pytest.fixture
def s3_config(s3):
    """A prefix of its own in the bucket of the running server."""
    return StoreConfig(
        uri=f"s3://{s3.bucket}/{uuid.uuid4().hex}/store",
        endpoint_url=s3.endpoint_url,
        region=s3.region,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
    )


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
