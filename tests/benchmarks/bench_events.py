"""Seconds from a version in the registry to the flow's own code on the one-machine stack: median of ten.

    PYTHONPATH=tests/support python tests/benchmarks/bench_events.py

Each version is created by MLflow's client, as a person does; MLflow's webhook wakes the relay, the relay
compares the registry and creates the run, and the worker starts its process. The runs' claims are taken at
once, so each ends with its claim, which is the first thing that it does: that moment is what is
measured. Bound: 6 s. Exits 1 where the median is over.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml

from one_machine import Machine, running, until
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.lease import claim
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.decision import key_of
from resprout.infra.triggers.model_registry import RegisteredVersion
from servers import free_port
from tiny_run import write_run

VERSIONS, BOUND = 10, 6.0


def write_settings(root: Path) -> Path:
    few = dict.fromkeys(("select", "recover", "measure", "gate"))
    rule = {
        "name": "chat",
        "models": ["chat-*"],
        "config": write_run(root, **few).name,
        "sources": ["file:///", "mlflow-artifacts:/"],
    }
    (root / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    relay = {"rules": str(root / "rules.yaml"), "webhook_secret": "${WEBHOOK_SECRET}", "port": free_port()}
    (root / "settings.yaml").write_text(yaml.safe_dump({"infra": {"relay": relay}}))
    return root / "settings.yaml"


def main() -> int:
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="resprout-bench-") as folder:
        root = Path(folder)
        machine = Machine(root / "home", {"WEBHOOK_SECRET": "bench"}, settings=write_settings(root))
        store = ArtifactStore.from_config(StoreConfig(), root / "home")
        began = time.monotonic()
        with running(machine):
            print(f"stack healthy after {time.monotonic() - began:.1f} s")
            uri = f"http://127.0.0.1:{machine.ports['mlflow']}"
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            run = client.create_run(client.create_experiment("people"))
            client.log_artifacts(run.info.run_id, str(root / "model"), "model")
            client.create_registered_model("chat-bench")
            seconds = []
            for version in range(1, VERSIONS + 1):
                told = time.time()
                source = f"{run.info.artifact_uri}/model"
                found = client.create_model_version("chat-bench", source, run_id=run.info.run_id)
                about = RegisteredVersion("chat-bench", str(version), created=found.creation_timestamp)
                claim(store.driver, key_of("chat", about), "bench")
                query = {"flow_runs": {"name": {"any_": [f"chat-bench-{version}"]}}}
                (started,) = until(lambda query=query: machine.post("flow_runs/filter", query), 60)
                states = machine.ends(started["id"])
                assert states[-1] == "AlreadyClaimed", states
                last = machine.states(started["id"])[-1]["timestamp"]
                seconds.append(datetime.fromisoformat(last).timestamp() - told)
        median = statistics.median(seconds)
        print(f"version to claim: median {median:.2f} s (bound {BOUND:g}), worst {max(seconds):.2f} s")
        return int(median > BOUND)


if __name__ == "__main__":
    sys.exit(main())
