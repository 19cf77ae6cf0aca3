"""A gate that is not passed is told through a notification block, by a real Prefect server."""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from forked import Forks
from resprout.configs.load import document, load
from resprout.flows.rerun_command import standalone
from resprout.infra.network import post
from servers import free_port, prefect_server
from tiny_run import config as tiny_config
from tiny_run import write_run

SETUP = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
from prefect.client.orchestration import get_client
from resprout.configs.errors import BadInput
from resprout.infra.prefect.automations import ensure_notice
Webhook.register_type_and_schema()
told = {k: "{{" + k + "}}" for k in ("subject", "body")}
Webhook(name="hook", url=sys.argv[1], json_data=told).save("on-call")
with get_client(sync_client=True) as client:
    try:
        ensure_notice(client, "custom-webhook/nobody")
    except BadInput as error:
        print(error)
    ensure_notice(client, "custom-webhook/on-call")
    ensure_notice(client, "custom-webhook/on-call")
    print(len(client.read_automations_by_name("resprout: tell custom-webhook/on-call")))
"""

RUN = """
import json, sys
from resprout.flows.compress import compress
print(compress(json.loads(sys.argv[1]), return_state=True).name)
"""


@pytest.fixture
def told() -> Iterator[tuple[str, queue.Queue[Any]]]:
    """Address of somebody who wants to be told, and what came."""
    came: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", came
        server.shutdown()


@pytest.mark.timeout(240)
def test_a_gate_that_is_not_passed_is_told_once(told: Any, forked: Forks, tmp_path: Path) -> None:
    address, came = told
    evaluate = {"perplexity": tiny_config()["evaluate"]["perplexity"]}
    parts = dict.fromkeys(("select", "recover", "measure"))
    path = write_run(tmp_path, evaluate=evaluate, gate={"max_params_ratio": 0.5}, **parts)
    given = json.dumps(standalone(load(path), document(path)))
    port = free_port()
    with prefect_server(tmp_path / "prefect", port):
        env = {
            **os.environ,
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "RESPROUT_HOME": str(tmp_path / "home"),
            "PREFECT_LOGGING_TO_API_ENABLED": "true",
            "OMP_NUM_THREADS": "1",
        }

        def call(code: str, argument: str) -> list[str]:
            done = forked.run([argument], env, 150, code)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        missing, automations = call(SETUP, address)
        assert "no such block (it has: custom-webhook/on-call)" in missing
        assert automations == "1"
        assert call(RUN, given) == ["GateNotPassed"]
        message = came.get(timeout=30)
        with pytest.raises(queue.Empty):
            came.get(timeout=5)
        logs = post(f"http://127.0.0.1:{port}/api/logs/filter", {})
        lines = [one["message"] for one in logs if one["flow_run_id"]]
    assert sum("plan: done" in line for line in lines) == 1, "the run's page shows its stages, once"
    assert message["subject"].startswith("resprout: GateNotPassed")
    assert "the gate is not passed: max_params_ratio 0.8" in message["body"]
    assert re.search(r"Flow run [0-9a-f-]{36}", message["body"])
