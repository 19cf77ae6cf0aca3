"""`resprout relay` as a process: what it refuses, what a kill leaves, and a real MLflow server."""

from __future__ import annotations

import http.server
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr

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
from resprout.configs.infrastructure import MlflowConfig, RelayConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.network import post
from resprout.infra.triggers.state import STARTED, TriggerState
from resprout.infra.triggers.webhook import EVENTS, HOOK_NAME, register_webhook

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
        assert relay.post(event("chat-7b", 1)) == 202
        # The end of the stream, within the timeout of the connection.
        assert [one.recv(1) for one in held] == [b""] * 50
        for one in held:
            one.close()


def test_it_ends_on_sigterm_though_no_server_answers_and_tells_no_secret(home: Path, rules: Path) -> None:
    more = {"PREFECT__API_URL": f"{DEAD}/api", "MLFLOW__TRACKING_URI": "http://user:hunter2@127.0.0.1:9"}
    with relay_process(home, rules, **more) as relay:
        bodies = [event("chat-7b", number, password="payload-secret-77") for number in range(20)]
        assert [relay.post(body) for body in bodies] == [202] * 20
        assert relay.post(bodies[0], signed(bodies[0], secret="wrong")) == 401
        assert relay.post(b"x" * 300_000) == 413
        until(lambda: 'failures_total{kind="server"}' in relay.get("/metrics"), 30)
        age = "resprout_relay_oldest_unhandled_seconds"
        assert [line for line in relay.get("/metrics").splitlines() if line.startswith(age)] != [f"{age} 0.0"]
        assert relay.end(signal.SIGTERM) == 0
        said = relay.log.read_text()
    assert "what is in the registry is compared and started once it does" in said
    assert "the relay has stopped; what it has not started is started when it is there again" in said
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


@pytest.fixture
def local(home: Path) -> Any:
    """A client of the registry in the relay's own home."""
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    return tracker.client


@pytest.mark.faults
def test_killed_at_any_time_it_starts_what_is_registered_once(
    home: Path, tmp_path: Path, api_url: str, named: str, local: Any
) -> None:
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named))
    with relay_process(home, rules, PREFECT__API_URL=f"{DEAD}/api") as relay:
        numbers = [add_version(local, "chat-7b") for _ in range(30)]
        for number in numbers:
            assert relay.post(event("chat-7b", number)) == 202
        assert relay.end(signal.SIGKILL) == -signal.SIGKILL
    # While nobody listens the registry goes on.
    numbers += [add_version(local, "chat-7b") for _ in range(5)]
    assert flow_runs(deployment) == []
    # Killed again and again while it starts runs.
    for _ in range(4):
        before = len(flow_runs(deployment))
        with relay_process(home, rules, PREFECT__API_URL=api_url) as relay:
            until(lambda before=before: len(flow_runs(deployment)) > min(before, 34), 60, relay.log.read_text)
            relay.end(signal.SIGKILL)
    with relay_process(home, rules, PREFECT__API_URL=api_url) as relay:
        until(lambda: len(flow_runs(deployment)) == 35, 60, relay.log.read_text)
        assert relay.end(signal.SIGTERM) == 0
    assert claims(deployment) == sorted(f"{named} chat-7b {number}" for number in numbers)


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_two_hundred_deliveries_a_second_about_fifteen_versions_start_fifteen_runs(
    home: Path, tmp_path: Path, api_url: str, named: str, local: Any
) -> None:
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named))
    with relay_process(home, rules, PREFECT__API_URL=api_url) as relay:
        about = [
            (f"chat-{model}", add_version(local, f"chat-{model}")) for _ in range(3) for model in "abcde"
        ]
        bodies = [event(name, number) for name, number in about]
        answers: list[int] = []
        began = time.monotonic() + 0.5

        def deliver(lane: int) -> None:
            for index in range(lane, 12_000, 16):
                time.sleep(max(0.0, began + index / 200 - time.monotonic()))
                answers.append(relay.post(bodies[index % 15]))

        lanes = [threading.Thread(target=deliver, args=(lane,)) for lane in range(16)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        assert time.monotonic() - began < 75, "the deliveries left late"
        assert (len(answers), set(answers)) == (12_000, {202})
        until(lambda: len(flow_runs(deployment)) == 15, 30, relay.log.read_text)
        until(lambda: "resprout_relay_oldest_unhandled_seconds 0.0" in relay.get("/metrics"), 30)
        assert relay.end(signal.SIGTERM) == 0
    assert claims(deployment) == sorted(f"{named} {name} {number}" for name, number in about)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_thousand_versions_in_a_minute_are_all_started_and_none_twice(
    mlflow_server: servers.MlflowServer, postgres: Any, home: Path, tmp_path: Path, api_url: str, named: str
) -> None:
    postgres.create(named)
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named, models=["many-*"]))
    client = client_of(mlflow_server.uri)
    config = RelayConfig(database_url=SecretStr(postgres.url(named)))
    more = {
        "PREFECT__API_URL": api_url,
        "MLFLOW__TRACKING_URI": mlflow_server.uri,
        "RELAY__DATABASE_URL": postgres.url(named),
        "RELAY__POLL_SECONDS": "5",
    }
    with relay_process(home, rules, **more) as relay:
        register_webhook(mlflow_server.uri, f"{relay.url}/webhooks/mlflow", SECRET)
        for model in range(10):
            client.create_registered_model(f"many-{model}")

        def register(model: int) -> None:
            for _ in range(100):
                client.create_model_version(f"many-{model}", "s3://models/x")

        began = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(register, range(10)))
        assert time.monotonic() - began < 60, "the versions were registered too slowly"
        state = TriggerState.open(config, home)
        until(lambda: state.counts()[STARTED] == 1000, 240, relay.log.read_text)
        state.close()
        assert relay.end(signal.SIGTERM) == 0
    assert claims(deployment) == sorted(
        f"{named} many-{model} {number}" for model in range(10) for number in range(1, 101)
    )


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_kills_of_relay_mlflow_and_database_lose_no_version_and_start_none_twice(
    home: Path, tmp_path: Path, api_url: str, named: str
) -> None:
    deployment = add_deployment(named)
    rules = write_rules(tmp_path / "rules", rule(named))
    port = servers.free_port()
    with servers.postgres_server() as postgres:
        for name in ("mlflow", "relay"):
            postgres.create(name)
        folder, database = tmp_path / "mlflow", postgres.url("mlflow", "psycopg2")
        folder.mkdir()
        more = {
            "PREFECT__API_URL": api_url,
            "MLFLOW__TRACKING_URI": f"http://127.0.0.1:{port}",
            "RELAY__DATABASE_URL": postgres.url("relay"),
            "RELAY__POLL_SECONDS": "1",
        }
        numbers: list[str] = []
        with servers.mlflow_server(folder, port, {}, database) as mlflow:
            client = client_of(mlflow.uri)
            with relay_process(home, rules, **more) as relay:
                numbers += [add_version(client, "chat-7b") for _ in range(5)]
                relay.end(signal.SIGKILL)
            with relay_process(home, rules, **more) as relay:
                numbers += [add_version(client, "chat-7b") for _ in range(5)]
                mlflow.kill()
                until(lambda: 'failures_total{kind="server"}' in relay.get("/metrics"), 60)
                with servers.mlflow_server(folder, port, {}, database):
                    numbers += [add_version(client, "chat-7b") for _ in range(5)]
                    postgres.stop()
                    time.sleep(3)
                    postgres.start()
                    until(lambda: len(flow_runs(deployment)) == 15, 120, relay.log.read_text)
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
    mlflow_server: servers.MlflowServer, postgres: Any, home: Path, tmp_path: Path, api_url: str, named: str
) -> None:
    postgres.create("relay")
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
        assert (hook.name, hook.url, len(hook.events)) == (HOOK_NAME, url, len(EVENTS))
        numbers = [add_version(client, "chat-7b") for _ in range(3)]
        for number in numbers:
            client.set_registered_model_alias("chat-7b", "champion", number)
        add_version(client, "other")
        body = event("chat-7b", numbers[0])
        assert other.post(body) == 202
        until(lambda: len(flow_runs(deployment)) == 3, 60, relay.log.read_text)
        # The webhooks themselves came and were proven: the looks alone would have found the versions too.
        until(lambda: accepted(relay) >= 3 + 3 + 1, 90, relay.log.read_text)
        idle = "resprout_relay_oldest_unhandled_seconds 0.0"
        until(lambda: idle in relay.get("/metrics"), 30, relay.log.read_text)
        until(lambda: {"chat-7b 1", "chat-7b 3"} <= emitted(api_url), 30)
        assert relay.end(signal.SIGTERM) == 0
        assert other.end(signal.SIGTERM) == 0
        assert "does not answer" not in relay.log.read_text() + other.log.read_text()
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in numbers]


def test_a_webhook_makes_the_look_come_at_once(
    home: Path, tmp_path: Path, api_url: str, named: str, mlflow_template: Path
) -> None:
    deployment = add_deployment(named)
    (home / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    client = client_of(f"sqlite:///{home / 'mlflow.db'}")
    rules = write_rules(tmp_path / "rules", rule(named))
    more = {"PREFECT__API_URL": api_url, "RELAY__POLL_SECONDS": "1000"}
    with relay_process(home, rules, **more) as relay:
        number = add_version(client, "chat-7b")
        assert relay.post(event("chat-7b", number)) == 202
        until(lambda: len(flow_runs(deployment)) == 1, 10, relay.log.read_text)
        # One that never comes costs the time until the next look, which a start begins with.
        add_version(client, "chat-7b")
        assert relay.end(signal.SIGTERM) == 0
    with relay_process(home, rules, **more) as relay:
        until(lambda: len(flow_runs(deployment)) == 2, 10, relay.log.read_text)
    assert claims(deployment) == [f"{named} chat-7b {number}" for number in "12"]


def emitted(api_url: str) -> set[str]:
    """Versions that Prefect has been told of by events."""
    asked = {"filter": {"event": {"name": ["resprout.model-version.created"]}}}
    events = post(f"{api_url}/events/filter", asked)["events"]
    return {f"{one['payload']['name']} {one['payload']['version']}" for one in events}


def accepted(relay: Any) -> float:
    lines = relay.get("/metrics").splitlines()
    found = [line for line in lines if line.startswith('resprout_relay_deliveries_total{outcome="accepted"}')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0
