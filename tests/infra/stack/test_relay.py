"""The stack with its relay: a version that appears in the registry starts a run by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from one_machine import Machine, running, until
from servers import free_port
from tiny_run import write_run


@pytest.mark.timeout(400)
def test_a_registered_version_starts_its_rule(tmp_path: Path) -> None:
    config = write_run(tmp_path, **dict.fromkeys(("select", "recover", "measure", "gate")))
    rules = tmp_path / "rules.yaml"
    rule = {
        "name": "chat",
        "models": ["chat-*"],
        "config": config.name,
        "sources": ["file:///", "mlflow-artifacts:/"],
    }
    rules.write_text(yaml.safe_dump({"rules": [rule]}))
    settings = tmp_path / "settings.yaml"
    relay = {"rules": str(rules), "webhook_secret": "${WEBHOOK_SECRET}", "port": free_port()}
    settings.write_text(yaml.safe_dump({"infra": {"relay": relay}}))
    secret = {"WEBHOOK_SECRET": "planted-webhook-secret-5521"}
    machine = Machine(tmp_path / "home", secret, settings=settings)
    with running(machine):
        assert set(machine.parts()) == {"prefect", "mlflow", "worker", "relay"}
        uri = f"http://127.0.0.1:{machine.ports['mlflow']}"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        (webhook,) = client.list_webhooks()
        assert webhook.url == f"http://127.0.0.1:{relay['port']}/webhooks/mlflow"
        run = client.create_run(client.create_experiment("people"))
        client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "model")
        client.create_registered_model("chat-small")
        client.create_model_version("chat-small", f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
        query = {"deployments": {"name": {"any_": ["chat"]}}}
        (started,) = until(lambda: machine.post("flow_runs/filter", query), 60)
        assert machine.ends(started["id"])[-1] == "Completed", machine.states(started["id"])[-1]["message"]
        secrets = ("planted-webhook", machine.auth)
        for path in set(machine.home.rglob("*")) - {machine.home / "prefect" / "auth"}:
            text = path.read_text(errors="replace") if path.is_file() else ""
            assert not [secret for secret in secrets if secret in text], path
