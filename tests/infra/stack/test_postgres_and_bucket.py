"""The stack on PostgreSQL and an S3 server: what compose.yaml runs, as processes of this machine."""

from __future__ import annotations

import json
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from one_machine import Machine, running
from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StackConfig
from resprout.infra.stack import services
from servers import postgres_server
from tiny_run import write_run


def test_a_server_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "OLDEST", 99)
    with postgres_server() as postgres:
        given = StackConfig(prefect_database_url=SecretStr(postgres.url("postgres")))
        with pytest.raises(BadInput, match=r"the server is PostgreSQL \d+; give one of version 99"):
            services.check_databases(given)


@pytest.mark.timeout(400)
def test_a_deployed_run_leaves_nothing_but_scratch_on_the_machine(s3: Any, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex
    store = s3.settings(prefix)
    with postgres_server() as postgres:
        for database in ("prefect", "mlflow"):
            postgres.create(database)
        secrets = {
            "PREFECT_DB": postgres.url("prefect"),
            "MLFLOW_DB": postgres.url("mlflow"),
            "S3_KEY": store["access_key_id"],
            "S3_SECRET": store["secret_access_key"],
        }
        infra = {
            "store": {**store, "access_key_id": "${S3_KEY}", "secret_access_key": "${S3_SECRET}"},
            "stack": {"prefect_database_url": "${PREFECT_DB}", "mlflow_database_url": "${MLFLOW_DB}"},
        }
        settings = tmp_path / "settings.yaml"
        settings.write_text(yaml.safe_dump({"infra": infra}))
        machine = Machine(tmp_path / "home", secrets, settings=settings)
        with running(machine):
            config = write_run(
                tmp_path, select=None, recover=None, measure=None, gate={"max_params_ratio": 0.86}
            )
            run = machine.deploy(config, "--run")["flow_run"]
            assert machine.ends(run)[-1] == "Completed", machine.states(run)[-1]["message"]
            url = f"http://127.0.0.1:{machine.ports['mlflow']}/api/2.0/mlflow"
            with urllib.request.urlopen(
                f"{url}/registered-models/alias?name=tiny-pruned&alias=candidate"
            ) as answer:
                version = json.load(answer)["model_version"]
            assert version["source"].startswith(f"s3://{s3.bucket}/{prefix}/")
            held = s3.client().list_objects_v2(Bucket=s3.bucket, Prefix=f"{prefix}/mlflow/")["Contents"]
            assert any(one["Key"].endswith("config.json") for one in held), "MLflow's files are in the bucket"
            left = {path.name for path in machine.home.iterdir()}
            assert not left & {"mlflow.db", "mlartifacts", "store"}
            assert not (machine.home / "prefect" / "prefect.db").exists()
            for path in (machine.home / "stack").rglob("*"):
                if path.is_file():
                    text = path.read_text(errors="replace")
                    assert not [value for value in secrets.values() if value in text], path

            postgres.stop()
            done = machine("up")
            assert done.returncode != 0
            postgres.start()
            done = machine("up")
            assert done.returncode == 0, done.stderr
