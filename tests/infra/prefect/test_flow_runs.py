"""Flow runs on a real server: one for a key; and what is no Prefect server."""

from __future__ import annotations

import http.server
import threading
import uuid
from typing import Any

import pytest

from relaying import add_deployment, flow_runs
from resprout.configs.errors import Transient
from resprout.configs.infrastructure import PrefectConfig
from resprout.infra.prefect.flow_runs import FlowRuns, NoDeployment


@pytest.fixture
def runs(prefect_server: None) -> FlowRuns:
    from prefect.settings import get_current_settings

    return FlowRuns(PrefectConfig(), str(get_current_settings().api.url))


def test_a_key_has_one_run(runs: FlowRuns) -> None:
    name = f"deployment-{uuid.uuid4().hex[:8]}"
    with pytest.raises(NoDeployment):
        runs.start(name, f"{name} 1", "run", [])
    deployment = add_deployment(name, overrides=["seed=1"])
    first = {runs.start(name, f"{name} 1", "run", ["seed=2"]) for _ in range(3)}
    assert len(first) == 1
    assert runs.start(name, f"{name} 2", "run", [], own=True) not in first
    parameters = {run.parameters["claim"]: run.parameters for run in flow_runs(deployment)}
    assert parameters == {
        f"{name} 1": {"config": {}, "overrides": ["seed=1", "seed=2"], "claim": f"{name} 1"},
        f"{name} 2": {"config": {}, "overrides": ["seed=1"], "claim": f"{name} 2", "own": True},
    }


def test_a_page_in_the_place_of_prefect_is_no_answer() -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>\xff</html>")

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        runs = FlowRuns(PrefectConfig(), f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(Transient, match="is no Prefect server"):
            runs.count()
        server.shutdown()
