from __future__ import annotations

import json
import uuid

import pytest

from resprout.configs.infrastructure import StoreConfig
from resprout.configs.schema import ModelConfig
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel, AcquireTask
from resprout.tasks.acquire.source import Context
from resprout.tasks.acquire.stage import acquire_model, acquire_task
from resprout.tasks.core.job import Job, silent
from tiny_models import write_tiny_folder


@pytest.fixture
def s3_store(s3):
    return StoreConfig(**s3.settings(uuid.uuid4().hex))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny llama as save_pretrained writes it; read only."""
    return write_tiny_folder(tmp_path_factory.mktemp("tiny") / "tiny", dtype="bfloat16")


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "home", tmp_path)


@pytest.fixture
def acquire(tmp_path, context):
    """Pin and bring a model; gives the content folder and the pinned job."""

    def call(source, context=context, role="model", **settings):
        job = AcquireModel.pin(ModelConfig(source=str(source), **settings), context, role)
        workdir = tmp_path / f"work-{uuid.uuid4().hex}"
        workdir.mkdir()
        acquire_model.body(Job(job), {}, workdir, silent)
        return workdir, job

    return call


@pytest.fixture
def bring(tmp_path, context):
    """Pin and bring data by a stage; gives the rows it wrote."""

    def call(stage, *sources, context=context, seed=17):
        workdir = tmp_path / f"work-{uuid.uuid4().hex}"
        workdir.mkdir()
        config = AcquireData.pin(sources, context)
        if stage is acquire_task:
            config = AcquireTask(config, {"task": "own"})
        stage.body(Job(config, seed=seed), {}, workdir, silent)
        (written,) = workdir.glob("*.jsonl")
        return [json.loads(line) for line in written.read_text().splitlines()]

    return call


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def jsonl(tmp_path):
    """Write rows to a JSONL file below the test's folder."""
    return lambda name, rows: write_jsonl(tmp_path / name, rows)
