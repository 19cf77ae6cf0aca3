from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import mlflow.transformers
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from resprout.configs.errors import BadInput, Transient
from resprout.configs.schema import ModelConfig
from resprout.tasks.acquire.jobs import AcquireModel
from resprout.tasks.acquire.source import Context
from resprout.tasks.models.load import load_model, load_tokenizer
from servers import free_port, mlflow_server


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An empty MLflow database, made once because its schema takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(database, tmp_path):
    shutil.copyfile(database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def context(tmp_path, tracking_uri):
    return Context(tmp_path / "home", tmp_path, tracking_uri=tracking_uri)


@pytest.fixture
def client(tracking_uri):
    client = MlflowClient(tracking_uri)
    client.create_registered_model("tiny")
    return client


@pytest.fixture
def flavour(tiny_folder, tmp_path):
    """What mlflow.transformers.save_model writes."""
    parts = {"model": load_model(tiny_folder, "bfloat16", "cpu"), "tokenizer": load_tokenizer(tiny_folder)}
    target = tmp_path / "flavour"
    mlflow.transformers.save_model(
        parts, str(target), task="text-generation", pip_requirements=["transformers"]
    )
    return target


def version(client, folder, **tags):
    return client.create_model_version("tiny", folder.as_uri(), tags=tags).version


def test_the_transformers_flavour_becomes_a_plain_folder(acquire, client, flavour, context, tiny_folder):
    version(client, flavour)
    content, job = acquire("models:/tiny/1", context)
    names = {path.relative_to(content).as_posix() for path in content.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.json"} <= names
    assert not {name for name in names if "/" in name or name == "MLmodel"}
    model, original = load_model(content, "float32", "cpu"), load_model(tiny_folder, "float32", "cpu")
    assert all((one == two).all() for one, two in zip(model.parameters(), original.parameters(), strict=True))
    assert len(load_tokenizer(content)) == 256
    assert job.origin()["version"] == 1


def test_a_plain_folder(acquire, client, tiny_folder, context):
    version(client, tiny_folder, reviewed="yes")
    content, job = acquire("models:/tiny/1", context)
    assert (content / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert job.origin()["tags"] == {"reviewed": "yes"}
    local = AcquireModel.pin(ModelConfig(source=str(tiny_folder)), context)
    assert job.key_data() == local.key_data()


def test_an_alias_is_pinned_to_its_version(client, tiny_folder, context, tmp_path):
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    (other / "generation_config.json").write_text("{}")
    for folder in (tiny_folder, other):
        version(client, folder)
    jobs = []
    for number in ("1", "2"):
        client.set_registered_model_alias("tiny", "champion", number)
        jobs.append(AcquireModel.pin(ModelConfig(source="models:/tiny@champion"), context))
    assert [job.pinned.uri for job in jobs] == ["models:/tiny/1", "models:/tiny/2"]
    assert jobs[0].key_data() != jobs[1].key_data()
    assert jobs[0].key_data() == AcquireModel.pin(ModelConfig(source="models:/tiny/1"), context).key_data()


def test_a_run_artifact(acquire, client, tiny_folder, context, tmp_path):
    experiment = client.create_experiment("one", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    client.log_artifacts(run.info.run_id, str(tiny_folder), "model")
    client.create_model_version("tiny", f"runs:/{run.info.run_id}/model", run.info.run_id)
    content, job = acquire("models:/tiny/1", context)
    assert (content / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert job.origin()["run_id"] == run.info.run_id


def test_a_logged_model(acquire, client, tiny_folder, context, tracking_uri, tmp_path):
    mlflow.set_tracking_uri(tracking_uri)
    try:
        mlflow.set_experiment(experiment_id=client.create_experiment("two", (tmp_path / "logged").as_uri()))
        parts = {
            "model": load_model(tiny_folder, "bfloat16", "cpu"),
            "tokenizer": load_tokenizer(tiny_folder),
        }
        with mlflow.start_run():
            mlflow.transformers.log_model(
                parts, name="m", task="text-generation", pip_requirements=[], registered_model_name="tiny"
            )
    finally:
        mlflow.set_tracking_uri(None)
    content, _ = acquire("models:/tiny/1", context)
    assert len(load_tokenizer(content)) == 256
    load_model(content, "float32", "cpu")


def test_a_version_in_a_bucket(acquire, client, tiny_folder, tmp_path, tracking_uri, s3, s3_store):
    context = Context(tmp_path / "home", tmp_path, store=s3_store, tracking_uri=tracking_uri)
    prefix = s3_store.uri.removeprefix(f"s3://{s3.bucket}/")
    for path in tiny_folder.iterdir():
        s3.client().upload_file(str(path), s3.bucket, f"{prefix}/m/{path.name}")
    client.create_model_version("tiny", f"{s3_store.uri}/m")
    content, job = acquire("models:/tiny/1", context)
    assert (content / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert job.pinned.uri == "models:/tiny/1"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("models:/tiny", "give models:/name/3 or models:/name@alias"),
        ("models:/tiny/latest", "give models:/name/3 or models:/name@alias"),
        ("models:/tiny/7", "models:/tiny/7.*check name, version and alias"),
        ("models:/tiny@absent", "models:/tiny@absent.*check name, version and alias"),
        ("models:/nobody/1", "models:/nobody/1.*check name, version and alias"),
    ],
)
def test_what_is_not_registered(acquire, client, context, source, sentence):
    with pytest.raises(BadInput, match=sentence):
        acquire(source, context)


def test_a_layout_that_does_not_work_says_which_do(acquire, client, context, tmp_path):
    (tmp_path / "sk").mkdir()
    (tmp_path / "sk" / "MLmodel").write_text("flavors: {sklearn: {}}")
    (tmp_path / "sk" / "model.pkl").write_bytes(b"x")
    version(client, tmp_path / "sk")
    with pytest.raises(BadInput, match=r"those that work are the transformers flavour .* and a plain folder"):
        acquire("models:/tiny/1", context)


def test_a_dead_server(acquire, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = "http://127.0.0.1:9"
    with pytest.raises(Transient, match=f"MLflow server at {address} does not answer for 'models:/tiny/1'"):
        acquire("models:/tiny/1", Context(tmp_path / "home", tmp_path, tracking_uri="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:secret@127.0.0.1:9",
        "http://bob:s@secret@127.0.0.1:9",
        "postgresql://bob:secret@127.0.0.1:9/x",
    ],
)
@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "RESOURCE_DOES_NOT_EXIST"])
def test_errors_hold_no_credentials(acquire, tmp_path, monkeypatch, uri, code):
    """MLflow quotes the URI that it asked."""

    def fails(self, name, number):
        raise MlflowException(f"{'x' * 250} request to {uri}/api failed at '{uri}'", code)

    monkeypatch.setattr(MlflowClient, "get_model_version", fails)
    monkeypatch.setattr(MlflowClient, "__init__", lambda self, **_: None)
    with pytest.raises((Transient, BadInput), match=r"request to \w+://127\.0\.0\.1:9/") as caught:
        acquire("models:/tiny/1", Context(tmp_path / "home", tmp_path, tracking_uri=uri))
    assert "bob" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_serves_artifacts(acquire, client, tiny_folder, tracking_uri, tmp_path):
    """Behind a real server, versions are listed and brought over HTTP."""
    with mlflow_server(tmp_path / "served", free_port(), database=tracking_uri) as server:
        remote = MlflowClient(server.uri)
        run = remote.create_run(remote.create_experiment("served"))
        remote.log_artifacts(run.info.run_id, str(tiny_folder), "model")
        remote.create_model_version("tiny", f"{run.info.artifact_uri}/model", run.info.run_id)
        context = Context(tmp_path / "home", tmp_path, tracking_uri=server.uri)
        content, job = acquire("models:/tiny/1", context)
        assert (content / "model.safetensors").read_bytes() == (
            tiny_folder / "model.safetensors"
        ).read_bytes()
        again = AcquireModel.pin(ModelConfig(source="models:/tiny/1"), context)
        assert again.key_data() == job.key_data()
