"""`resprout relay` as a process: what it refuses, what a kill leaves, and a real MLflow server."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

import servers
from relaying import (
    COMMAND,
    SECRET,
    add_deployment,
    add_version,
    claims,
    client_of,
    event,
    flow_runs,
    relay_environment,
    relay_process,
    rule,
    signed,
    until,
    write_rules,
)
from resprout.configs.schema import RelayConfig
from resprout.infra.relay.outbox import WAITING, Outbox

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return write_rules(tmp_path / "rules")


def refused(home: Path, rules: Path, port: int | None = None, **more: str) -> str:
    """What a relay says that must not start."""
    env = relay_environment(home, rules, port or servers.free_port(), PREFECT__API_URL=f"{DEAD}/api", **more)
    env = {name: value for name, value in env.items() if value}
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert SECRET not in done.stderr
    return done.stderr


@contextmanager
def old_server(path: str, version: str) -> Iterator[str]:
    """A server that says it is of this version."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(version.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_it_does_not_start_without_a_secret(home: Path, rules: Path) -> None:
    said = refused(home, rules, RELAY__WEBHOOK_SECRET="")
    assert "infra.relay.webhook_secret is not set, so anyone could start runs" in said


def test_it_does_not_start_without_rules_or_with_wrong_ones(home: Path, rules: Path) -> None:
    assert "no rules are given; set infra.relay.rules" in refused(home, rules, RELAY__RULES="")
    rules.write_text("rules: [{name: x, modles: [a]}]")
    assert "did you mean 'models'" in refused(home, rules)


def test_it_does_not_start_on_a_port_in_use_and_says_whose(home: Path, rules: Path) -> None:
    import os

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(home, rules, port)
    assert f"port {port} is in use by " in said
    assert f"(process {os.getpid()})" in said
    assert "set infra.relay.port to another port" in said


def test_it_does_not_start_with_servers_that_are_too_old(home: Path, rules: Path) -> None:
    with old_server("/version", "2.22.0") as url:
        said = refused(home, rules, MLFLOW__TRACKING_URI=url)
        assert "the MLflow server has version 2.22.0; the relay needs 3.17 or later" in said
    with old_server("/api/admin/version", '"3.4.1"') as url:
        env = relay_environment(home, rules, servers.free_port(), PREFECT__API_URL=f"{url}/api")
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert "the Prefect server has version 3.4.1; the relay needs 3.9 or later" in done.stderr


@pytest.mark.parametrize("path", ["/admin/version", "/api/admin/version"])
def test_it_does_not_start_where_something_else_than_prefect_answers(
    home: Path, rules: Path, path: str
) -> None:
    # A page for every address, as the user interface is, or 404 for all that lacks /api.
    with old_server(path, "<html>welcome</html>") as url:
        env = relay_environment(home, rules, servers.free_port(), PREFECT__API_URL=url)
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    said = f"what answers at {url} is no Prefect server; infra.prefect.api_url ends in /api"
    assert said in done.stderr


def test_connections_whose_request_never_gets_to_its_end_are_closed(home: Path, rules: Path) -> None:
    with relay_process(home, rules, PREFECT__API_URL=f"{DEAD}/api") as relay:
        port = int(relay.url.rpartition(":")[2])
        held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(50)]
        for index, one in enumerate(held):
            if index % 2:
                one.sendall(b"POST /webhooks/mlflow HTTP/1.1\r\nHost: relay\r\nX-Slow: ")
        assert relay.post(event("chat-7b", 1)) == 200
        # The end of the stream, within the timeout of the connection.
        assert [one.recv(1) for one in held] == [b""] * 50
        for one in held:
            one.close()


def test_it_ends_on_sigterm_after_what_it_took_and_tells_no_secret(home: Path, rules: Path) -> None:
    more = {"PREFECT__API_URL": f"{DEAD}/api", "MLFLOW__TRACKING_URI": "http://user:hunter2@127.0.0.1:9"}
    with relay_process(home, rules, **more) as relay:
        bodies = [event("chat-7b", number, password="payload-secret-77") for number in range(20)]
        assert [relay.post(body) for body in bodies] == [200] * 20
        assert relay.post(bodies[0], signed(bodies[0], secret="wrong")) == 401
        assert relay.post(b"x" * 300_000) == 413
        assert "resprout_relay_waiting 20.0" in relay.get("/metrics")
        until(lambda: 'failures_total{kind="server"}' in relay.get("/metrics"), 30)
        assert relay.end(signal.SIGTERM) == 0
        said = relay.log.read_text()
    assert "deliveries are kept and handed over once it does" in said
    assert "the relay has stopped; what it took is in the outbox" in said
    outbox = Outbox.open(RelayConfig(), home)
    assert outbox.counts()[0][WAITING] == 20
    outbox.close()
    written = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert any(path.name == "relay.db" for path in written)
    for secret in (SECRET, "payload-secret-77", "hunter2"):
        assert [path for path, data in written.items() if secret.encode() in data] == []


def test_a_delivery_of_ten_megabytes_is_refused_before_it_is_sent(home: Path, rules: Path) -> None:
    with relay_process(home, rules, PREFECT__API_URL=f"{DEAD}/api") as relay:
        host, _, port = relay.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as sent:
            sent.sendall(b"POST /webhooks/mlflow HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
            assert sent.recv(1000).startswith(b"HTTP/1.1 413")
        assert relay.get("/health") == "ok"


@pytest.mark.faults
def test_killed_between_taking_and_handing_over_it_goes_on_where_it_was(
    home: Path, tmp_path: Path, api_url: str
) -> None:
    named = f"rule-{uuid.uuid4().hex[:8]}"
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named))
    from resprout.configs.schema import MlflowConfig
    from resprout.infra.tracking import Tracker

    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    numbers = [add_version(tracker.client, "chat-7b") for _ in range(10)]
    with relay_process(home, rules, PREFECT__API_URL=f"{DEAD}/api") as relay:
        for number in numbers:
            assert relay.post(event("chat-7b", number)) == 200
        assert relay.end(signal.SIGKILL) == -signal.SIGKILL
    assert flow_runs(deployment) == []
    # Killed again and again while it hands over.
    for _ in range(3):
        before = len(flow_runs(deployment))
        with relay_process(home, rules, PREFECT__API_URL=api_url) as relay:
            until(lambda before=before: len(flow_runs(deployment)) > min(before, 9), 60, relay.log.read_text)
            relay.end(signal.SIGKILL)
    with relay_process(home, rules, PREFECT__API_URL=api_url) as relay:
        until(lambda: "resprout_relay_waiting 0.0" in relay.get("/metrics"), 60, relay.log.read_text)
        assert relay.end(signal.SIGTERM) == 0
    assert claims(deployment) == sorted(f"{named} chat-7b {number}" for number in numbers)


@pytest.fixture(scope="module")
def mlflow_server(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.MlflowServer]:
    """A server on PostgreSQL that may send webhooks to this machine."""
    postgres.create("mlflow")
    allowed = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    folder, port = tmp_path_factory.mktemp("mlflow"), servers.free_port()
    with servers.mlflow_server(folder, port, allowed, postgres.url("mlflow", "psycopg2")) as server:
        yield server


def test_an_mlflow_server_tells_two_relays_and_one_run_starts_for_each_version(
    mlflow_server: servers.MlflowServer, postgres: Any, home: Path, tmp_path: Path, api_url: str
) -> None:
    from resprout.infra.relay.webhook import EVENTS, NAME, register_webhook

    postgres.create("relay")
    named = f"rule-{uuid.uuid4().hex[:8]}"
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named, on=["created", "alias"]))
    client = client_of(mlflow_server.uri)
    more = {
        "PREFECT__API_URL": api_url,
        "MLFLOW__TRACKING_URI": mlflow_server.uri,
        "RELAY__DATABASE_URL": postgres.url("relay"),
        "RELAY__POLL_SECONDS": "0.5",
    }
    with (
        relay_process(home / "a", rules, **more) as relay,
        relay_process(home / "b", rules, **more) as other,
    ):
        url = f"{relay.url}/webhooks/mlflow"
        register_webhook(mlflow_server.uri, f"{other.url}/webhooks/mlflow", "old secret")
        identity = register_webhook(mlflow_server.uri, url, SECRET)
        assert register_webhook(mlflow_server.uri, url, SECRET) == identity
        (hook,) = client.list_webhooks()
        assert (hook.name, hook.url, len(hook.events)) == (NAME, url, len(EVENTS))
        numbers = [add_version(client, "chat-7b") for _ in range(3)]
        for number in numbers:
            client.set_registered_model_alias("chat-7b", "champion", number)
        add_version(client, "other")
        body = event("chat-7b", numbers[0])
        assert other.post(body) == 200
        until(lambda: len(flow_runs(deployment)) == 3, 60, relay.log.read_text)
        # The webhook itself came, was proven, and not only the poll's look.
        until(lambda: accepted(relay) >= 3 + 3 + 1, 90, relay.log.read_text)
        until(lambda: "resprout_relay_waiting 0.0" in relay.get("/metrics"), 30, relay.log.read_text)
        until(lambda: {"chat-7b 1", "chat-7b 3"} <= emitted(api_url), 30)
        assert relay.end(signal.SIGTERM) == 0
        assert other.end(signal.SIGTERM) == 0
        assert "does not answer" not in relay.log.read_text() + other.log.read_text()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in numbers]


def emitted(api_url: str) -> set[str]:
    """Versions that Prefect has been told of by events."""
    asked = json.dumps({"filter": {"event": {"name": ["resprout.model-version.created"]}}}).encode()
    request = urllib.request.Request(f"{api_url}/events/filter", asked, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        events = json.load(answer)["events"]
    return {f"{one['payload']['name']} {one['payload']['version']}" for one in events}


def accepted(relay: Any) -> float:
    lines = relay.get("/metrics").splitlines()
    found = [line for line in lines if line.startswith('resprout_relay_deliveries_total{outcome="accepted"}')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0
