"""`resprout up`: healthy within a minute, quick when it is up, and quiet about secrets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from browser import chromium
from one_machine import Machine, running, until
from resprout.infra.prefect.automations import run_automations
from resprout.infra.stack.launch import SERVICE, STACK, stack_mark
from resprout.infra.stack.stack import down
from resprout.infra.stack.supervisor import Supervisor
from servers import assert_guarded, other_origin

SECRETS = {
    "RESPROUT_INFRA__STORE__ACCESS_KEY_ID": "planted-access-4be1",
    "RESPROUT_INFRA__STORE__SECRET_ACCESS_KEY": "planted-secret-77fa",
    "RESPROUT_INFRA__RELAY__WEBHOOK_SECRET": "planted-webhook-19cd",
}
NAMED_BY_THE_USER = {"MY_S3_SECRET": "planted-secret-77fa", "MY_WEBHOOK_SECRET": "planted-webhook-19cd"}
"""As settings name them: ${MY_S3_SECRET}."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("stack"), {**SECRETS, **NAMED_BY_THE_USER})
    began = time.monotonic()
    with running(machine):
        print(f"up in {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 60
        yield machine


def test_every_part_is_healthy_and_on_loopback_only(stack: Machine) -> None:
    done = stack("up", "--status")
    assert done.returncode == 0
    assert done.stderr.count("healthy") == 3
    assert f"http://127.0.0.1:{stack.ports['mlflow']}" in done.stderr
    pids = {process.pid for process in stack.processes()}
    listening = {
        one.laddr.ip for one in psutil.net_connections("tcp") if one.pid in pids and one.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}


def test_a_second_up_says_at_once_that_all_is_up(stack: Machine) -> None:
    before = stack.parts()
    began = time.monotonic()
    done = stack("up")
    assert time.monotonic() - began < 3
    assert done.returncode == 0
    assert "everything is up already" in done.stderr
    assert {part["pid"] for part in stack.parts().values()} == {part["pid"] for part in before.values()}


def test_secrets_reach_only_the_parts_that_need_them(stack: Machine) -> None:
    planted = [*SECRETS.values(), stack.auth]
    for path in (stack.home / "stack").rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [secret for secret in planted if secret in text], path
            held = path.suffix in (".conf", ".json", ".key", ".log") and path.name != "start.log"
            assert not held or path.stat().st_mode & 0o077 == 0, path
    for private in (stack.home / "stack", stack.home / "prefect" / "auth"):
        assert private.stat().st_mode & 0o077 == 0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert not [secret for secret in planted if secret in " ".join(process.cmdline())]
    environments = {name: psutil.Process(part["pid"]).environ() for name, part in stack.parts().items()}
    held = {
        name: {variable for variable in (*SECRETS, *NAMED_BY_THE_USER) if variable in environment}
        for name, environment in environments.items()
    }
    # A run's own config may say ${MY_S3_SECRET}.
    store = {variable for variable in SECRETS if "STORE" in variable} | {"MY_S3_SECRET"}
    assert held == {"prefect": set(), "mlflow": set(), "worker": store}
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in environments["mlflow"]
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" not in environments["worker"]
    holders = {name for name, values in environments.items() if stack.auth in values.values()}
    assert holders == {"prefect", "worker"}


SHELL_STEP = {"prefect.deployments.steps.run_shell_script": {"script": "true"}}
INSTALLED = "resprout.flows.compress.compress"


def test_another_origin_host_or_user_gets_nothing(stack: Machine) -> None:
    assert_guarded(stack.api, stack.auth)


def test_the_worker_starts_only_flows_that_are_installed(stack: Machine, tmp_path: Path) -> None:
    # A settings file in a run's first folder may name code, as may one that a variable names.
    (tmp_path / "prefect.toml").write_text("")
    folder = {"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}
    of_logging = {"PREFECT_LOGGING_SETTINGS_PATH": str(tmp_path / "logging.yaml")}
    rows: dict[str, dict[str, Any]] = {
        "the pull step prefect.deployments.steps.run_shell_script": {"pull_steps": [SHELL_STEP]},
        "the pull step prefect.deployments.steps.set_working_directory": {"pull_steps": [folder]},
        "is the file": {"entrypoint": "/tmp/x.py:f"},
        "is copied from": {"path": str(tmp_path)},
        "names a command": {"job_variables": {"command": "true"}},
        "begins in the folder": {"job_variables": {"working_dir": str(tmp_path)}},
        "sets PYTHONPATH": {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}},
        "sets PREFECT_LOGGING_SETTINGS_PATH": {"job_variables": {"env": of_logging}},
    }
    flow = stack.post("flows/", {"name": "compress"})["id"]
    runs = {}
    for reason, what in rows.items():
        named = {"name": reason, "flow_id": flow, "work_pool_name": "resprout"}
        wanted = {**named, "entrypoint": INSTALLED, **what}
        made = stack.post("deployments/", wanted)["id"]
        runs[reason] = stack.post(f"deployments/{made}/create_flow_run", {})["id"]
    for reason, run in runs.items():
        assert stack.ends(run, 60)[-1] == "Failed"
        assert reason in stack.states(run)[-1]["message"]


def test_a_page_of_another_origin_reaches_nothing_and_the_own_pages_ask_for_the_password(
    stack: Machine, tmp_path: Path
) -> None:
    made = {"name": "planted", "flow_id": stack.post("flows/", {"name": "compress"})["id"]}
    with chromium() as browser, other_origin(tmp_path) as origin:
        browser.get(origin)
        tried = browser.execute_async_script(TRY, stack.api, made, {"pull_steps": [SHELL_STEP]})
        assert [one["fault"] for one in tried] == ["TypeError"] * 3, tried
        assert stack.post("deployments/filter", {"deployments": {"name": {"any_": ["planted"]}}}) == []

        browser.get(stack.api.removesuffix("/api"))
        field = until(lambda: browser.find_elements("css selector", "input[type=password]"), 30)[0]
        assert "/login" in browser.current_url
        field.send_keys(stack.auth + "\n")
        until(lambda: "/dashboard" in browser.current_url, 30)
        until(lambda: "Flow Runs" in browser.find_element("css selector", "body").text, 30)


TRY = """
const [api, made, steps, done] = [...arguments];
const json = {method: 'POST', headers: {'Content-Type': 'application/json'}};
const plain = {method: 'POST', mode: 'cors', headers: {'Content-Type': 'text/plain'}};
const look = async (path, how, body) => {
  try { return {status: (await fetch(api + path, {...how, body: JSON.stringify(body)})).status}; }
  catch (error) { return {fault: error.name}; }
};
(async () => done([
  await look('/deployments/', json, {...made, ...steps}),
  await look('/deployments/', plain, {...made, ...steps}),
  await look('/flow_runs/filter', json, {}),
]))();
"""
"""What a page tries: with a preflight, as a form does it without one, and to read."""


def test_up_starts_a_part_that_was_stopped(stack: Machine) -> None:
    Supervisor(stack.home).stop("mlflow")
    assert not stack.parts()["mlflow"]["healthy"]
    done = stack("up")
    assert done.returncode == 0, done.stderr
    assert stack.parts()["mlflow"]["healthy"]


def test_a_changed_setting_starts_only_the_parts_that_it_concerns(stack: Machine) -> None:
    before = stack.parts()
    more = {"RESPROUT_INFRA__STACK__RUN_LIMIT": "2"}
    done = stack("up", env=more)
    assert done.returncode == 0, done.stderr
    after = stack.parts()
    assert [name for name in before if before[name]["pid"] != after[name]["pid"]] == ["worker"]
    pools = stack.post("work_pools/filter", {})
    assert [(pool["name"], pool["concurrency_limit"]) for pool in pools] == [("resprout", 2)]
    assert stack("up").returncode == 0


def test_down_leaves_nothing_and_up_finds_everything_again(stack: Machine) -> None:
    key = (stack.home / "stack" / "webhook.key").read_text()
    done = stack("up", "--down")
    assert done.returncode == 0
    assert "stopped the stack" in done.stderr
    assert stack.processes() == []
    status = stack("up", "--status")
    assert status.returncode == 1
    assert status.stderr.count("not healthy (stopped)") == 3
    assert "no stack of" in stack("up", "--down").stderr
    assert stack("up").returncode == 0
    assert (stack.home / "stack" / "webhook.key").read_text() == key
    assert len(stack.post("automations/filter", {})) == len(run_automations()), "automations are made once"


def test_what_the_settings_forbid_is_said_before_anything_starts(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: []\n")
    table = {
        "127.0.0.1:1/nowhere": {"stack": {"prefect_database_url": "${DB}"}},
        "must be postgresql://": {"stack": {"mlflow_database_url": "${WRONG}"}},
        "name the same database": {
            "stack": {"prefect_database_url": "${DB}", "mlflow_database_url": "${DB}"}
        },
        "set infra.stack.prefect_port where another port is meant": {
            "prefect": {"api_url": "http://elsewhere:4200/api"}
        },
        "mlflow.tracking_uri is http://elsewhere": {"mlflow": {"tracking_uri": "http://elsewhere:5000"}},
        "webhook_secret is not": {"relay": {"rules": str(rules)}},
        "no file": {"relay": {"rules": str(tmp_path / "none.yaml"), "webhook_secret": "${DB}"}},
    }
    machine = Machine(
        tmp_path / "home", {"DB": "postgresql://me:pw-91x@127.0.0.1:1/nowhere", "WRONG": "mysql://h/d"}
    )
    path = tmp_path / "settings.yaml"
    for sentence, infra in table.items():
        path.write_text(yaml.safe_dump({"infra": infra}))
        done = machine("up", path)
        assert done.returncode == 2, (sentence, done.stderr)
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
        assert "pw-91x" not in done.stderr
    assert machine("up", "--status", "--down").returncode == 2
    assert machine.processes() == []


def test_a_port_in_use_names_the_process(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", machine.ports["mlflow"]))
        taken.listen()
        done, status = machine("up"), machine("up", "--status")
    assert f"at http://127.0.0.1:{machine.ports['mlflow']} answers" in status.stderr
    assert f"(process {os.getpid()}), which is not of the data folder {machine.home}" in status.stderr
    assert done.returncode == 2
    assert f"port {machine.ports['mlflow']} of the MLflow server is in use by" in done.stderr
    assert f"process {os.getpid()}" in done.stderr
    assert (
        "set infra.stack.mlflow_port to another port, in the settings or as "
        "RESPROUT_INFRA__STACK__MLFLOW_PORT" in done.stderr
    )
    assert machine.processes() == []


LATE = """
import os, signal, subprocess, sys, time
def start(*_):
    os.environ[sys.argv[1]] = "mlflow"
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    sys.exit()
signal.signal(signal.SIGTERM, start)
print("ready", flush=True)
time.sleep(60)
"""


def test_down_ends_what_a_supervisor_starts_while_it_is_stopped(tmp_path: Path) -> None:
    """One that does not answer yet, right behind its start."""
    (tmp_path / "stack").mkdir()
    mark = {STACK: stack_mark(tmp_path)}
    command = [sys.executable, "-c", LATE, SERVICE]
    with subprocess.Popen(command, env={**os.environ, **mark}, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        assert down(tmp_path)
    assert Machine(tmp_path).processes() == []


def test_a_part_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home")
    machine.home.mkdir()
    (machine.home / "mlflow.db").write_text("no database at all, " * 100)
    try:
        done = machine("up")
        assert done.returncode == 1
        (sentence,) = done.stderr.strip().splitlines()
        assert "the MLflow server does not get healthy" in sentence
        assert "file is not a database" in sentence
        until(lambda: machine.parts()["prefect"]["healthy"], 60)
    finally:
        machine("up", "--down")
    assert machine.processes() == []
