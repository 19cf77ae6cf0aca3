from __future__ import annotations

import shutil

import pytest

from resprout.configs.errors import BadInput, StageFailed, Transient
from resprout.configs.infrastructure import StoreConfig
from resprout.configs.schema import ModelConfig, RowSource
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.acquire.jobs import AcquireModel
from resprout.tasks.acquire.source import Context
from resprout.tasks.acquire.stage import acquire_model, acquire_rows
from resprout.tasks.core.job import Job, silent


@pytest.fixture
def remote(s3, s3_store, tiny_folder):
    """The tiny model under s3://bucket/<prefix>/model; gives client, bucket and prefix."""
    client, prefix = s3.client(), s3_store.uri.rpartition("/")[2]
    for path in tiny_folder.iterdir():
        client.upload_file(str(path), s3.bucket, f"{prefix}/model/{path.name}")
    client.put_object(Bucket=s3.bucket, Key=f"{prefix}/model/README.md", Body=b"---\nlicense: mit\n---\n")
    return client, s3.bucket, prefix


@pytest.fixture
def context(tmp_path, s3_store):
    return Context(tmp_path / "home", tmp_path, store=s3_store)


def test_a_model_under_a_prefix(acquire, remote, tiny_folder, context):
    _, bucket, prefix = remote
    content, job = acquire(f"s3://{bucket}/{prefix}/model", context)
    assert (content / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert job.licence_note() == "mit"
    assert "README.md" not in job.origin()["objects"]
    again = AcquireModel.pin(ModelConfig(source=f"s3://{bucket}/{prefix}/model/"), context)
    assert again.key_data() == job.key_data()


def test_an_artifact_of_the_store_is_a_source_with_the_key_of_its_bytes(
    s3_store, tiny_folder, context, tmp_path
):
    store = ArtifactStore.from_config(s3_store, tmp_path / "home")
    digest = store.publish(tiny_folder).digest
    remote = AcquireModel.pin(ModelConfig(source=store.uri(digest)), context)
    assert remote.key_data() == AcquireModel.pin(ModelConfig(source=str(tiny_folder)), context).key_data()


def test_an_object_that_changes_between_pin_and_use_is_refused(remote, context, tmp_path):
    client, bucket, prefix = remote
    job = AcquireModel.pin(ModelConfig(source=f"s3://{bucket}/{prefix}/model"), context)
    client.put_object(Bucket=bucket, Key=f"{prefix}/model/config.json", Body=b"{}")
    changed = AcquireModel.pin(ModelConfig(source=f"s3://{bucket}/{prefix}/model"), context)
    assert changed.key_data() != job.key_data()
    (tmp_path / "work").mkdir()
    with pytest.raises(StageFailed, match=r"config.json was changed while it was being used"):
        acquire_model.body(Job(job), {}, tmp_path / "work", silent)


def test_one_object_as_data(bring, remote, context):
    client, bucket, prefix = remote
    key = f"{prefix}/data/pool%20#1.jsonl"
    client.put_object(Bucket=bucket, Key=key, Body=b'{"instruction": "a", "output": "b"}\n')
    client.put_object(Bucket=bucket, Key=f"{prefix}/data/other.jsonl", Body=b"{")
    with pytest.raises(BadInput, match="there is nothing at"):
        bring(acquire_rows, RowSource(source=f"s3://{bucket}/{prefix}/data/absent.jsonl"), context=context)
    found = bring(acquire_rows, RowSource(source=f"s3://{bucket}/{key}"), context=context)
    assert [one["instruction"] for one in found] == ["a"]


def test_an_mlflow_folder_in_a_bucket(acquire, remote, context, tiny_folder):
    client, bucket, prefix = remote
    for path in tiny_folder.iterdir():
        part = "components/tokenizer" if path.name.startswith("tokenizer") else "model"
        client.upload_file(str(path), bucket, f"{prefix}/flavour/{part}/{path.name}")
    client.put_object(Bucket=bucket, Key=f"{prefix}/flavour/MLmodel", Body=b"flavors: {}")
    content, _ = acquire(f"s3://{bucket}/{prefix}/flavour", context)
    assert (content / "tokenizer.json").is_file()
    assert (content / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("s3://bucket", "names no object"),
        ("s3:///x", "names no object"),
        ("s3://no-such-bucket-here/x", "bucket"),
    ],
)
def test_bad_addresses(acquire, context, source, sentence):
    with pytest.raises(BadInput, match=sentence):
        acquire(source, context)


def test_a_server_that_is_not_there(acquire, context, s3_store, tmp_path, monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    away = StoreConfig(**{**s3_store.model_dump(), "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(Transient, match="cannot be reached"):
        acquire("s3://bucket/x", Context(tmp_path / "home", tmp_path, store=away))


def test_a_file_system_copy_has_another_key_only_where_s3_keeps_no_sha256(
    remote, tiny_folder, context, tmp_path
):
    """Objects that other tools wrote are told apart by ETag, so their key is not that of a local copy."""
    _, bucket, prefix = remote
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    local = AcquireModel.pin(ModelConfig(source=str(copy)), context)
    remote_job = AcquireModel.pin(ModelConfig(source=f"s3://{bucket}/{prefix}/model"), context)
    assert local.key_data() != remote_job.key_data()
