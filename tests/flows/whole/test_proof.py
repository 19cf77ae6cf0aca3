"""The whole of it on real servers: what is registered is compressed, held against its gate, and registered.

Prefect and MLflow on PostgreSQL, an S3 server, the relay and a worker, as `resprout up` starts them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import COMMAND
from forked import Forks
from resprout.infra.network import post
from resprout.infra.prefect.auth import auth_string
from servers import PostgresServer, free_port, postgres_server
from tiny_models import write_tiny_folder
from tiny_run import config as tiny_config
from tiny_run import words as made_words
from tiny_run import write_data

PAGE = Path(__file__).resolve().parents[3] / "flows" / "README.md"
OPERATE = "## Schedule, trigger, scale out"


@dataclass(frozen=True)
class Stack:
    """A running stack: where its files are, what its commands see, and its servers."""

    root: Path
    env: dict[str, str]
    bucket: Any
    prefix: str
    postgres: PostgresServer
    mlflow: str
    prefect: str
    relay: str
    forked: Forks

    def call(
        self, *arguments: str, seconds: float = 200, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return self.forked.run(arguments, {**self.env, **variables}, seconds, cwd=self.root)

    def start(self, *arguments: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own from its start, as `up` is."""
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.root, env=self.env, timeout=seconds,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.mlflow, self.mlflow)

    def upload(self, folder: Path, key: str) -> str:
        for file in folder.iterdir():
            self.bucket.client().upload_file(str(file), self.bucket.bucket, f"{key}/{file.name}")
        return f"s3://{self.bucket.bucket}/{key}"

    def flow_runs(self) -> list[dict[str, Any]]:
        auth = auth_string(self.root / "home" / "prefect")
        return list(post(f"{self.prefect}/api/flow_runs/filter", {}, auth))

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.relay}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def log(self, part: str) -> str:
        return "".join(path.read_text() for path in sorted(self.root.rglob(f"{part}*.log*")))


def write_files(root: Path) -> None:
    """Write small run configs, a sweep, rules and a delivery, as the page names them."""
    write_data(root / "configs")
    evaluate = {"perplexity": tiny_config()["evaluate"]["perplexity"]}
    parts = dict.fromkeys(("select", "recover", "measure"))
    config = tiny_config(evaluate=evaluate, gate={"max_perplexity_ratio": 50.0}, **parts)
    (root / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(config))
    write_tiny_folder(root / "configs" / "model", dtype="float32")
    # Its evaluation takes minutes: a run that is there to be cancelled.
    rows = ({"text": made_words(120, seed)} for seed in range(500))
    (root / "configs" / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = [{"source": "long.jsonl"}]
    every = {"text": text, "window_tokens": 64, "stride_tokens": 1, "limit_tokens": None}
    every = {**evaluate["perplexity"], **every}
    (root / "configs" / "long.yaml").write_text(yaml.safe_dump({**config, "evaluate": {"perplexity": every}}))
    sweep = {"name": "two", "base": "quickstart.yaml", "grid": {"prune.target.params_ratio": [0.9, 0.85]}}
    (root / "configs" / "sweep_quickstart.yaml").write_text(yaml.safe_dump(sweep))
    event = {"entity": "model_version", "action": "created", "data": {"name": "chat-one", "version": "1"}}
    (root / "event.json").write_text(json.dumps(event))
    rule = {
        "name": "compress-chat",
        "models": ["chat-*"],
        "on": ["created", "alias"],
        "config": "configs/quickstart.yaml",
        "sources": ["s3://"],
        "overrides": {
            "name": "{{ name }}-v{{ version }}",
            "register.name": "{{ name }}-small",
            "register.alias": "candidate",
        },
    }
    (root / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))


@pytest.fixture(scope="module")
def stack(s3: Any, forked: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root, prefix = tmp_path_factory.mktemp("proof"), uuid.uuid4().hex
    write_files(root)
    with postgres_server() as postgres:
        for name in ("prefect", "mlflow", "relay"):
            postgres.create(name)
        ports = {name: free_port() for name in ("prefect", "mlflow", "relay")}
        store = {
            **s3.settings(f"{prefix}/store"),
            "access_key_id": "${BUCKET_KEY}",
            "secret_access_key": "${BUCKET_SECRET}",
        }
        address = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        infra = {
            "store": store,
            "mlflow": {"tracking_uri": address["mlflow"]},
            "prefect": {"api_url": f"{address['prefect']}/api", "notify": "slack-webhook/on-call"},
            "stack": {
                "prefect_port": ports["prefect"],
                "mlflow_port": ports["mlflow"],
                "prefect_database_url": "${PREFECT_DATABASE}",
                "mlflow_database_url": "${MLFLOW_DATABASE}",
            },
            "relay": {
                "rules": "rules.yaml",
                "port": ports["relay"],
                "webhook_secret": "${WEBHOOK_SECRET}",
                "database_url": "${RELAY_DATABASE}",
                "poll_seconds": 5,
            },
            "logs": "json",
        }
        (root / "settings.yaml").write_text(yaml.safe_dump({"infra": infra}))
        # The commands find the same servers; runs in the worker get them from the stack.
        env = {
            **os.environ,
            "RESPROUT_HOME": str(root / "home"),
            "OMP_NUM_THREADS": "1",
            "BUCKET_KEY": s3.access_key_id,
            "BUCKET_SECRET": s3.secret_access_key,
            "PREFECT_DATABASE": postgres.url("prefect"),
            "MLFLOW_DATABASE": postgres.url("mlflow"),
            "RELAY_DATABASE": postgres.url("relay"),
            "WEBHOOK_SECRET": "planted-webhook-secret-81c2",
        }
        env.pop("PREFECT_API_URL", None)
        found = Stack(
            root, env, s3, prefix, postgres, address["mlflow"], address["prefect"], address["relay"], forked
        )
        try:
            done = found.start("up", "settings.yaml")
            assert done.returncode == 0, done.stderr
            assert "names slack-webhook/on-call, but the Prefect server has no such block" in done.stderr
            yield found
        finally:
            found.start("up", "settings.yaml", "--down")


def wait_for(what: str, look: Callable[[], Any], seconds: float = 150) -> Any:
    """What `look` finds, asked again until it finds something."""
    end = time.monotonic() + seconds
    while True:
        try:
            found = look()
        except Exception as error:
            found, what = None, f"{what} ({error})"
        if found:
            return found
        assert time.monotonic() < end, what
        time.sleep(0.3)


def register(stack: Stack, name: str, seed: int) -> str:
    """A new version of `name`, whose weights no other has, in the bucket; its number."""
    folder = stack.root / f"{name}-{seed}"
    write_tiny_folder(folder, dtype="float32", seed=seed)
    source = stack.upload(folder, f"{stack.prefix}/models/{name}/{seed}")
    client = stack.client()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, source).version)


def compressed(stack: Stack, name: str, version: str) -> Any:
    """The candidate that was made of a version, once there is one."""
    found = stack.client().get_model_version_by_alias(f"{name}-small", "candidate")
    return found if found.tags["resprout.source"] == f"models:/{name}/{version}" else None


@pytest.mark.timeout(480)
def test_a_registered_version_is_compressed_and_registered_by_itself(stack: Stack) -> None:
    version = register(stack, "chat-one", seed=101)
    made = wait_for("no compressed version", lambda: compressed(stack, "chat-one", version))
    assert made.source.startswith(f"s3://{stack.bucket.bucket}/{stack.prefix}/store/content/")
    run = stack.client().get_run(made.run_id)
    assert run.data.tags["resprout.gate"] == "passed"
    (flow_run,) = stack.flow_runs()
    done = wait_for("the run does not end", lambda: stack.flow_runs()[0]["state_name"] == "Completed" or None)
    assert done
    assert run.data.tags["resprout.flow_run"] == flow_run["id"]

    # The same version again, by an alias and by MLflow's repeats: it has had its run.
    counts = wait_for("a version waits", lambda: _counts(stack)["waiting"] == 0 and _counts(stack), 60)
    stack.client().set_registered_model_alias("chat-one", "ready", version)
    stack.client().set_registered_model_alias("chat-one", "ready", version)
    # What resprout registered is named chat-one-small, which the rule's pattern fits.
    assert re.match("chat-", made.name)

    def seen() -> bool:
        now = _counts(stack)
        return now["waiting"] == 0 and now["seen"] > counts["seen"]

    wait_for("the alias was not seen", seen, 60)
    assert len(stack.flow_runs()) == 1
    status = stack.call("triggers", "status", "--config", "settings.yaml", "--json")
    assert status.returncode == 0, status.stderr
    told = json.loads(status.stdout)
    assert [(one["rule"], one["name"], str(one["version"])) for one in told["started"]] == [
        ("compress-chat", "chat-one", version)
    ]
    assert told["failed"] == []
    metrics = stack.metrics()
    assert re.search(r'^resprout_relay_deliveries_total\{outcome="accepted"\} [1-9]', metrics, re.M)
    assert re.search(r"^resprout_relay_oldest_unhandled_seconds \d", metrics, re.M)
    assert re.search(r'^resprout_relay_runs_started_total\{rule="compress-chat"\} 1\.0$', metrics, re.M)


def _counts(stack: Stack) -> dict[str, int]:
    status = stack.call("triggers", "status", "--config", "settings.yaml", "--json")
    return dict(json.loads(status.stdout)["counts"])


@pytest.mark.timeout(300)
def test_the_log_of_the_run_can_be_read_by_a_program(stack: Stack) -> None:
    lines = [json.loads(line) for line in stack.log("worker").splitlines() if line.startswith("{")]
    done = [line for line in lines if line.get("stage") == "plan" and "seconds" in line]
    assert done, "the run of the test before has logged its stages"
    assert len(done[0]["flow_run"]) == 36
    secrets = ("planted-webhook-secret-81c2", stack.bucket.secret_access_key)
    written = [path for path in stack.root.rglob("*") if path.is_file() and path.name != "webhook.key"]
    assert [path for path in written if any(one.encode() in path.read_bytes() for one in secrets)] == []


@pytest.mark.faults
@pytest.mark.timeout(480)
def test_a_restart_of_postgresql_in_the_middle_of_a_run(stack: Stack) -> None:
    version = register(stack, "chat-two", seed=202)
    began = f'"run": "chat-two-v{version}"'
    wait_for("no run began", lambda: began in stack.log("worker"))
    stack.postgres.stop()
    time.sleep(10)
    stack.postgres.start()
    made = wait_for("no compressed version", lambda: compressed(stack, "chat-two", version), 240)
    assert made
    wait_for(
        "the run does not end",
        lambda: all(run["state_type"] == "COMPLETED" for run in stack.flow_runs()) or None,
    )
    assert [run["name"] for run in stack.flow_runs()].count(f"chat-two-{version}") == 1


@pytest.mark.timeout(480)
def test_every_command_of_the_page_works(stack: Stack) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(OPERATE) :]
    section = section[: section.index("\n## ", 5)]
    commands = [
        line.split("  #")[0].strip()
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.S | re.M)
        for line in block.splitlines()
        if not language
    ]
    assert len(commands) == 16
    servers = {
        "RESPROUT_INFRA__PREFECT__API_URL": f"{stack.prefect}/api",
        "RESPROUT_INFRA__MLFLOW__TRACKING_URI": stack.mlflow,
    }
    alone = stack.call("run", "configs/quickstart.yaml", **servers)
    assert alone.returncode == 1
    assert "keeps the files of runs in a bucket that this process cannot use" in alone.stderr
    bucket = stack.bucket.settings(f"{stack.prefix}/store")
    servers.update({f"RESPROUT_INFRA__STORE__{name.upper()}": value for name, value in bucket.items()})
    for command in commands:
        words = shlex.split(command)
        assert Path(words[0]).name == "resprout", command
        if words[1] == "cancel":
            begun = stack.call("deploy", "configs/long.yaml", "--run", **servers)
            assert begun.returncode == 0, begun.stderr
        if words[1] in ("logs", "cancel", "retry"):
            # The page names a run that its reader has, here the last that was asked for.
            asked = [run for run in stack.flow_runs() if not run["auto_scheduled"]]
            newest = max(asked, key=lambda run: run["created"])
            words[2] = newest["name" if words[1] == "logs" else "id"]
        done = stack.call(*words[1:], **servers)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if words[1] == "cancel":
            assert "has stopped; finished stages are kept" in done.stdout
            ended = [run["id"] for run in stack.flow_runs() if run["state_type"] == "CANCELLED"]
            assert ended == [words[2]]
