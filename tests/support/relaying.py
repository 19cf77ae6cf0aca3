"""Helpers for tests of registry triggers: deliveries, rules, versions, deployments, the relay itself."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import servers
from tiny_run import config

SECRET = "planted-webhook-secret-2c9e"
KINDS = {
    "created": ("model_version", "created"),
    "alias": ("model_version_alias", "created"),
    "tag": ("model_version_tag", "set"),
}


def event(name: str, version: str | int, kind: str = "created", **data: Any) -> bytes:
    """A delivery's body as MLflow writes it."""
    entity, action = KINDS[kind]
    about = {"name": name, "version": str(version), "source": "s3://lies/x", **data}
    return json.dumps({"entity": entity, "action": action, "timestamp": "now", "data": about}).encode()


def signed(
    body: bytes, identity: str | None = None, *, secret: str = SECRET, at: float | None = None
) -> dict[str, str]:
    """The headers that MLflow sends with a body."""
    identity, stamp = identity or str(uuid.uuid4()), str(int(time.time() if at is None else at))
    mark = hmac.new(secret.encode(), f"{identity}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "X-MLflow-Delivery-Id": identity,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": "v1," + base64.b64encode(mark).decode(),
    }


def rule(name: str = "chat", **changes: Any) -> dict[str, Any]:
    """A rule for models called chat-*, wherever in a bucket they lie."""
    base = {"name": name, "models": ["chat-*"], "on": ["created"], "config": "run.yaml", "sources": ["s3://"]}
    return {**base, **changes}


def write_rules(folder: Path, *rules: dict[str, Any]) -> Path:
    """A rules file with its run config beside it; who reads meanwhile sees no half of one."""
    folder.mkdir(exist_ok=True)
    for name, data in (("run.yaml", config()), ("rules.yaml", {"rules": list(rules) or [rule()]})):
        (folder / "written").write_text(yaml.safe_dump(data))
        (folder / "written").rename(folder / name)
    return folder / "rules.yaml"


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def add_version(client: Any, name: str, source: str = "s3://models/chat", **more: Any) -> str:
    """Number of a new version."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, source, **more).version)


def add_deployment(name: str, **parameters: Any) -> Any:
    """Id of a deployment of the flow, as far as runs of it can be created."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("compress")
        return client.create_deployment(flow, name, parameters={"config": {}, **parameters})


def flow_runs(deployment: Any) -> list[Any]:
    """Runs of a deployment."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    found: dict[Any, Any] = {}
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(deployment_filter=chosen, limit=200, offset=len(found))
            found.update((run.id, run) for run in page)
            if len(page) < 200:
                return list(found.values())


def claims(deployment: Any) -> list[str]:
    """What runs of a deployment are for, without the time at which the version was created."""
    found = [run.parameters["claim"].split(" ") for run in flow_runs(deployment)]
    return sorted(" ".join([*words[:3], *words[4:]]) for words in found)


@dataclass
class RelayProcess:
    """`resprout relay` in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """HTTP status of a delivery."""
        given = signed(body) if headers is None else dict(headers)
        request = urllib.request.Request(f"{self.url}/webhooks/mlflow", body, given, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            return answer.read().decode()

    def end(self, how: signal.Signals) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


def relay_environment(home: Path, rules: Path, port: int, **more: str) -> dict[str, str]:
    """Environment of a relay."""
    settings = {
        "RELAY__RULES": str(rules),
        "RELAY__PORT": str(port),
        "RELAY__WEBHOOK_SECRET": SECRET,
        **more,
    }
    named = {f"RESPROUT_INFRA__{name}": value for name, value in settings.items()}
    return {**os.environ, "RESPROUT_HOME": str(home), **named}


COMMAND = [sys.executable, "-m", "resprout.flows.cli.main", "relay"]


@contextmanager
def relay_process(home: Path, rules: Path, **more: str) -> Iterator[RelayProcess]:
    """A relay that answers; killed afterwards."""
    home.mkdir(exist_ok=True)
    port, log = servers.free_port(), home / "relay.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            COMMAND, env=relay_environment(home, rules, port, **more), stdout=sink, stderr=sink
        )
    relay = RelayProcess(f"http://127.0.0.1:{port}", process, log)
    try:
        until(lambda: answers(relay), 60, lambda: log.read_text()[-2000:])
        yield relay
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def answers(relay: RelayProcess) -> bool:
    assert relay.process.poll() is None, relay.log.read_text()[-2000:]
    try:
        return relay.get("/health") == "ok"
    except OSError:
        return False


def until(happened: Any, seconds: float, says: Any = lambda: "") -> None:
    """Wait until `happened()` is true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, says()
        time.sleep(0.1)
