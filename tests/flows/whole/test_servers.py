"""The same run config against real servers: MLflow over HTTP, Prefect, and a bucket."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError

import servers
from planted import files, leaks
from resprout.configs.infrastructure import SECRETS
from servers import MlflowServer
from tiny_run import config as tiny_config
from tiny_run import write_run

ACCESS = "planted-access-key-7f3a"
SECRET = "planted-secret-key-91bc"
MLFLOW_PASSWORD = "planted-mlflow-password-55d0"
OTHERS = {
    "prefect.api_key": "someone:planted-prefect-key-20ae",
    "relay.webhook_secret": "planted-webhook-secret-c4f1",
    "relay.database_url": "postgresql://me:planted-relay-database-66b7@127.0.0.1:9/relay",
    "stack.prefect_database_url": "postgresql://me:planted-prefect-database-913d@127.0.0.1:9/prefect",
    "stack.mlflow_database_url": "postgresql://me:planted-mlflow-database-e02c@127.0.0.1:9/mlflow",
}
"""Secrets of other parts, which lie in the environment of a run all the same."""


def signing_key() -> str:
    """A new Ed25519 key, PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made = Ed25519PrivateKey.generate()
    return made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with servers.mlflow_server(tmp_path_factory.mktemp("mlflow"), servers.free_port()) as server:
        yield server


def second_key(server: Any) -> None:
    """Give the server a second key pair, as a rotation does."""
    binary = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    port = int(server.endpoint_url.rpartition(":")[2])
    done = subprocess.run(
        [binary, "shell", f"-master=127.0.0.1:{port + 1}", f"-filer=127.0.0.1:{port + 3}"],
        input=(
            f"s3.configure -user=second -access_key={ACCESS} -secret_key={SECRET} "
            "-actions=Read,Write,List,Admin,Tagging -apply\n"
        ),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    client = dataclasses.replace(server, access_key_id=ACCESS, secret_access_key=SECRET).client()
    end = time.monotonic() + 20
    while True:
        try:
            client.list_objects_v2(Bucket=server.bucket, MaxKeys=1)
            return
        except ClientError:
            assert time.monotonic() < end, done.stdout + done.stderr
            time.sleep(0.2)


@dataclasses.dataclass(frozen=True)
class Served:
    """A run on servers: its config without `infra`, the environment that names them, and what it said."""

    config: Path
    home: Path
    env: dict[str, str]
    prefix: str
    outcome: Any


@pytest.fixture(scope="module")
def served(
    s3: Any,
    mlflow_server: MlflowServer,
    api_url: str,
    resprout: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    root, prefix = tmp_path_factory.mktemp("served"), uuid.uuid4().hex
    path = write_run(root)
    infra = {
        "store": {
            **s3.settings(prefix),
            "access_key_id": "${BUCKET_KEY}",
            "secret_access_key": "${BUCKET_SECRET}",
        },
        "mlflow": {"tracking_uri": mlflow_server.uri, "username": "${MY_MLFLOW_USER}"},
        "prefect": {"api_url": api_url},
    }
    path.write_text(yaml.safe_dump({**tiny_config(), "infra": infra}))
    env = {
        "BUCKET_KEY": s3.access_key_id,
        "BUCKET_SECRET": s3.secret_access_key,
        "MY_MLFLOW_USER": "someone",
        "RESPROUT_INFRA__MLFLOW__PASSWORD": MLFLOW_PASSWORD,
        "RESPROUT_INFRA__PROOF__SIGNING_KEY": signing_key(),
        **{f"RESPROUT_INFRA__{key.upper().replace('.', '__')}": value for key, value in OTHERS.items()},
    }
    outcome = resprout("run", path, "--json", home=root / "home", env=env, anew=True)
    assert outcome.code == 0, outcome.err
    return Served(path, root / "home", env, prefix, outcome)


def client_of(server: MlflowServer) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)


def objects(s3: Any, prefix: str) -> dict[str, bytes]:
    client = s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=f"{prefix}/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()
        for key in keys
    }


def test_artifacts_are_in_the_bucket_and_the_version_points_there(
    served: Served, s3: Any, mlflow_server: MlflowServer
) -> None:
    result = served.outcome.result
    kept = objects(s3, served.prefix)
    for stage in result["stages"]:
        digest = stage["artifact"]["digest"]
        assert f"manifests/{digest}.json" in kept
        assert stage["artifact"]["uri"] == f"s3://{s3.bucket}/{served.prefix}/content/{digest}"
    version = client_of(mlflow_server).get_model_version_by_alias("tiny-pruned", "candidate")
    assert version.source == result["exports"][0]["uri"]
    assert version.source.startswith(f"s3://{s3.bucket}/{served.prefix}/content/")
    inside = version.source.removeprefix(f"s3://{s3.bucket}/{served.prefix}/")
    assert f"{inside}/model.safetensors" in kept
    assert client_of(mlflow_server).get_run(result["mlflow_run_id"]).info.status == "FINISHED"
    assert not (served.home / "store").exists(), "nothing is kept beside the bucket"


def test_the_lines_at_the_end_of_a_run_bring_the_model_out_of_the_bucket(served: Served, s3: Any) -> None:
    assert served.outcome.result["exports"][0]["path"] is None
    assert not (served.home / "models").exists()
    _, found, lines = served.outcome.err.partition("load it:\n")
    assert found
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint_url,
    }
    code = f"{textwrap.dedent(lines)}\nprint(model.num_parameters())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == served.outcome.result["models"]["recovered"]["params"]


def test_mlflow_loads_the_version_out_of_the_bucket_by_its_flavour(
    served: Served, s3: Any, mlflow_server: MlflowServer
) -> None:
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "MLFLOW_S3_ENDPOINT_URL": s3.endpoint_url,
    }
    code = "import sys; sys.modules['resprout'] = None\nimport mlflow\n"
    code += "found = mlflow.transformers.load_model('models:/tiny-pruned@candidate')\n"
    code += "print(found.task, found.model.num_parameters())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    params = served.outcome.result["models"]["recovered"]["params"]
    assert done.stdout.split()[-2:] == ["text-generation", str(params)]
    run = client_of(mlflow_server).get_run(served.outcome.result["mlflow_run_id"])
    (logged,) = client_of(mlflow_server).search_logged_models([run.info.experiment_id])
    data = {(one.dataset_name, one.dataset_digest) for one in logged.metrics if one.dataset_name}
    known = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    assert {name for name, _ in data} == {"evaluation text", "task own", "calibration text", "pool"}
    assert data <= known
    copies = [key for key in objects(s3, served.prefix) if key.endswith("hf/model.safetensors")]
    assert len(copies) == 1, "no second copy of the weights"


def test_the_config_gives_the_same_keys_and_bytes_as_without_servers(
    served: Served, finished: Any, s3: Any
) -> None:
    def made(result: Any) -> dict[str, str]:
        return {
            stage["name"]: stage["artifact"]["digest"]
            for stage in result["stages"]
            if not stage["name"].startswith(("measure", "report"))
        }

    assert made(served.outcome.result) == made(finished.result)
    keys = {path.name for path in (finished.home / "store" / "results").iterdir()}
    there = {key.removeprefix("results/") for key in objects(s3, served.prefix) if key.startswith("results/")}
    assert {key for key in keys ^ there if not key.startswith("report")} == set()


def test_a_second_run_from_another_machine_with_a_rotated_key_runs_nothing(
    served: Served, s3: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    second_key(s3)
    rotated = {**served.env, "BUCKET_KEY": ACCESS, "BUCKET_SECRET": SECRET}
    again = resprout("run", served.config, "--json", home=tmp_path / "home", env=rotated)
    assert again.code == 0, again.err
    assert [stage["name"] for stage in again.result["stages"] if not stage["cached"]] == []
    assert again.result["registered"] == served.outcome.result["registered"]


def test_lineage_and_verify_work_from_another_machine(
    served: Served, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    for verb in ("lineage", "verify"):
        found = resprout(
            verb, "models:/tiny-pruned@candidate", "--config", served.config,
            home=tmp_path / "home", env=served.env,
        )  # fmt: skip
        assert found.code == 0, found.err
    assert "every byte as published, every link holds" in found.out


def planted_in(served: Served, s3: Any) -> dict[str, str]:
    """Every secret that the run was given, by its key; what of an address is secret is its password."""
    signing = served.env["RESPROUT_INFRA__PROOF__SIGNING_KEY"]
    body = "".join(signing.splitlines()[1:-1])
    others = {key: re.findall(r"planted-[a-z0-9-]+", value)[0] for key, value in OTHERS.items()}
    return {
        "store.secret_access_key": s3.secret_access_key,
        "store.access_key_id": ACCESS,
        "store.secret_access_key, rotated": SECRET,
        "mlflow.password": MLFLOW_PASSWORD,
        "proof.signing_key": body,
        "proof.signing_key, its seed": base64.b64decode(body)[-32:].hex(),
        **others,
    }


def prefect_database() -> Path:
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    return Path(url.get_secret_value().partition(":///")[2]).parent


def test_no_secret_is_written_anywhere(served: Served, s3: Any, mlflow_server: MlflowServer) -> None:
    secrets = planted_in(served, s3)
    named = {name.partition(",")[0].rpartition(".")[2] for name in secrets}
    # MLflow and its pages show who is logged in: a name is no secret to whom it belongs.
    assert named == SECRETS - {"username"}, "a secret that this test does not plant"
    kept = {
        **files(served.home, mlflow_server.folder, served.config.parent, prefect_database()),
        **objects(s3, served.prefix),
        "stdout": served.outcome.out.encode(),
        "stderr": served.outcome.err.encode(),
    }
    assert [name for name in kept if name.endswith("server.db")]
    assert [name for name in kept if name.endswith("prefect.db") or "prefect" in name]
    assert [name for name in kept if name.startswith("signatures/")], "the key was used"
    assert leaks(secrets, kept) == []


def test_no_secret_is_in_a_backup(
    served: Served, s3: Any, mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resprout.configs.load import load_infra
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.retention import backup
    from resprout.infra.retention.backup import Backup
    from resprout.infra.retention.mlflow_data import Database
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.local import LocalDriver
    from resprout.infra.store.store import ArtifactStore

    for name, value in served.env.items():
        monkeypatch.setenv(name, value)
    infra, _ = load_infra(served.config)
    store, tracker = (
        ArtifactStore.from_config(infra.store, tmp_path, infra.proof),
        Tracker(infra.mlflow, tmp_path),
    )
    tracker.connect()
    target = LocalDriver(tmp_path / "backup")
    locks = LeaseLockManager(store.driver)
    database = Database(f"sqlite:///{mlflow_server.folder / 'server.db'}")
    counted = Backup(store, tracker, database, target).run(locks)
    locks.close()
    database.close()
    assert counted.copied == counted.objects > 100
    assert backup.read_statement(target, store.signer).signed_by == (store.signer.own_id,)
    kept = files(target.root)
    for room in (
        "store/signatures",
        "store/seals",
        "mlflow/tables",
        f"mlflow/files/{served.outcome.result['mlflow_run_id']}",
    ):
        assert [name for name in kept if f"/{room}/" in name], room
    assert leaks(planted_in(served, s3), kept) == []


@pytest.mark.parametrize("wrong", ["secret_access_key", "access_key_id"])
def test_a_run_that_the_bucket_refuses_leaves_no_secret(
    wrong: str, served: Served, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    name = {"secret_access_key": "BUCKET_SECRET", "access_key_id": "BUCKET_KEY"}[wrong]
    env = {**served.env, name: SECRET}
    found = resprout("run", served.config, "--json", "--debug", home=tmp_path / "home", env=env)
    assert found.code == 2, found.err
    assert "does not accept the credentials" in found.err
    kept = {**files(tmp_path), "stdout": found.out.encode(), "stderr": found.err.encode()}
    planted = {"wrong": SECRET, "right": served.env["BUCKET_SECRET"], "password": MLFLOW_PASSWORD}
    assert leaks(planted, kept) == []


def test_a_local_store_and_an_mlflow_server(
    mlflow_server: MlflowServer, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    import mlflow

    evaluate = {"perplexity": tiny_config()["evaluate"]["perplexity"]}
    parts = dict.fromkeys(("select", "recover", "measure", "gate"))
    path = write_run(tmp_path, evaluate=evaluate, register={"name": "from-a-folder"}, **parts)
    env = {"RESPROUT_INFRA__MLFLOW__TRACKING_URI": mlflow_server.uri}
    found = resprout("run", path, "--json", home=tmp_path / "home", env=env)
    assert found.code == 0, found.err
    version = client_of(mlflow_server).get_model_version("from-a-folder", "1")
    assert version.run_id == found.result["mlflow_run_id"]
    version_run = client_of(mlflow_server).get_run(version.run_id)
    assert not version.source.startswith("file:")
    mlflow.set_tracking_uri(mlflow_server.uri)
    try:
        brought = Path(
            mlflow.artifacts.download_artifacts("models:/from-a-folder/1", dst_path=str(tmp_path / "brought"))
        )
        flavoured = mlflow.transformers.load_model("models:/from-a-folder/1")
        (logged,) = mlflow.MlflowClient().search_logged_models(
            [version_run.info.experiment_id], f"source_run_id = '{version.run_id}'"
        )
    finally:
        mlflow.set_tracking_uri(None)
    assert flavoured.model.num_parameters() == found.result["models"]["pruned"]["params"]
    assert version.source == logged.artifact_location, "the one copy is the LoggedModel's"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "from-a-folder", "version": "1"}]
    export = Path(found.result["exports"][0]["uri"].removeprefix("file://"))
    files = {file.relative_to(export): file.read_bytes() for file in export.rglob("*") if file.is_file()}
    assert Path("model.safetensors") in files
    # MLflow notes on its own side which version it brought.
    (brought / "registered_model_meta").unlink()
    assert {
        file.relative_to(brought): file.read_bytes() for file in brought.rglob("*") if file.is_file()
    } == files
    again = resprout("run", path, "--json", home=tmp_path / "home", env=env)
    assert again.result["registered"] == found.result["registered"], "the copy is taken again"
    good = resprout("verify", "models:/from-a-folder/1", home=tmp_path / "home", env=env)
    assert good.code == 0, good.err
    (copy,) = mlflow_server.folder.rglob(version.source.partition("/models/")[2])
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    (copy / "planted.py").write_text("")
    bad = resprout("verify", "models:/from-a-folder/1", home=tmp_path / "home", env=env)
    assert bad.code == 4
    assert "/artifacts/config.json was changed" in bad.err
    assert "/artifacts/planted.py was added" in bad.err
    (copy / "planted.py").unlink()
    (copy / "config.json").unlink()
    gone = resprout("verify", "models:/from-a-folder/1", home=tmp_path / "home", env=env)
    assert gone.code == 4
    assert "/artifacts/config.json is missing" in gone.err
