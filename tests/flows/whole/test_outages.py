"""Runs that nobody watches: a server goes away for a while, and the run goes on when it is back."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forked import Fork, Forks
from proxy import proxy
from resprout.configs.load import document, load
from resprout.flows.rerun_command import standalone
from resprout.infra.network import post
from servers import free_port, mlflow_server, prefect_server
from tiny_run import config as tiny_config
from tiny_run import write_run

pytestmark = pytest.mark.faults

RUN = """
import json, sys
from resprout.flows.compress import compress
state = compress(json.loads(sys.argv[1]), return_state=True)
print(json.dumps({"name": state.name, "message": state.message, "result": state.result(raise_on_failure=False)
                  if state.is_completed() else None}))
"""


@dataclass
class Deployed:
    """A run as a worker starts it."""

    process: Fork

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.process.err:
            assert time.monotonic() < end, f"no '{text}' in\n{self.process.err}"
            assert self.process.poll() is None, self.process.err
            time.sleep(0.05)

    def end(self, seconds: float = 240) -> Any:
        out, err = self.process.communicate(seconds)
        assert out.strip(), err
        return json.loads(out.strip().splitlines()[-1])

    def count(self, text: str) -> int:
        return sum(text in line for line in self.process.err.splitlines())


@pytest.fixture
def deployed(tmp_path: Path, forked: Forks) -> Iterator[Callable[..., Deployed]]:
    """Start the tiny run, with few stages, in a process of its own; `infra` is its section."""
    started: list[Fork] = []

    def start(infra: dict[str, Any], api_url: str) -> Deployed:
        evaluate = {"perplexity": tiny_config()["evaluate"]["perplexity"]}
        parts = dict.fromkeys(("select", "recover", "measure", "gate"))
        path = write_run(tmp_path, evaluate=evaluate, **parts)
        given = {**standalone(load(path), document(path)), "infra": infra}
        settings = {
            **os.environ,
            "RESPROUT_HOME": str(tmp_path / "home"),
            "PREFECT_API_URL": api_url,
            "OMP_NUM_THREADS": "1",
        }
        started.append(forked.start([json.dumps(given)], settings, RUN))
        return Deployed(started[-1])

    yield start
    for process in started:
        process.kill()


@pytest.mark.timeout(300)
def test_a_bucket_that_is_away_for_half_a_minute(
    s3: Any, deployed: Callable[..., Deployed], api_url: str
) -> None:
    with proxy(s3.endpoint_url) as through:
        store = {**s3.settings(uuid.uuid4().hex), "endpoint_url": through.url}
        for name in ("access_key_id", "secret_access_key"):
            os.environ[f"TEST_{name.upper()}"] = store[name]
            store[name] = f"${{TEST_{name.upper()}}}"
        run = deployed({"store": store, "prefect": {"retries": 0}}, api_url)
        run.wait_for("calibrate: done")
        through.choose = lambda method, path: "reset"
        time.sleep(30)
        assert run.process.poll() is None
        through.choose = lambda method, path: None
        end = run.end()
    assert end["name"] == "Completed", end["message"]
    assert run.count("cannot be reached") >= 1
    assert run.count("trying again in") >= 1
    assert run.count("calibrate: done") == 1, "a finished stage was made again"
    assert end["result"]["registered"]["version"] == "1"


@pytest.mark.timeout(400)
def test_mlflow_is_down_at_the_start_in_a_stage_and_at_the_registration(
    deployed: Callable[..., Deployed], api_url: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    run = deployed({"mlflow": {"tracking_uri": address}}, api_url)
    run.wait_for("cannot be used")
    with mlflow_server(tmp_path / "mlflow", port) as server:
        run.wait_for("calibrate: started")
        server.kill()
    run.wait_for("failed in")
    with mlflow_server(tmp_path / "mlflow", port) as server:
        run.wait_for("export: done")
        server.kill()
    before = run.count("failed in")
    end = time.monotonic() + 60
    while run.count("failed in") == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    with mlflow_server(tmp_path / "mlflow", port):
        found = run.end()
        client = MlflowClient(address, address)
        versions = client.search_model_versions("name = 'tiny-pruned'")
        every = client.search_runs([client.get_experiment_by_name("resprout").experiment_id])
    nested = [one for one in every if "mlflow.parentRunId" in one.data.tags]
    parents = [one for one in every if one not in nested]
    assert found["name"] == "Completed", found["message"]
    assert [version.version for version in versions] == ["1"]
    assert [(one.info.status, one.data.tags["resprout.gate"]) for one in parents] == [("FINISHED", "none")]
    finished = [one.info.run_name for one in nested if one.info.status == "FINISHED"]
    assert len(finished) == len(set(finished)), "a stage is told of once"
    for stage in ("acquire model", "calibrate", "plan", "export"):
        assert run.count(f"{stage}: done") == 1, f"{stage} was made again"


@pytest.mark.timeout(400)
def test_a_prefect_server_that_is_down_for_a_minute(
    deployed: Callable[..., Deployed], tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    with prefect_server(tmp_path / "prefect", port):
        run = deployed({}, url)
        run.wait_for("calibrate: started")
    time.sleep(60)
    with prefect_server(tmp_path / "prefect", port):
        end = run.end()
        (flow_run,) = post(f"{url}/flow_runs/filter", {})
    assert end["name"] == "Completed", end["message"]
    assert flow_run["state_type"] == "COMPLETED"
    assert run.count("calibrate: done") == 1
