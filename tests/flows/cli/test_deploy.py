"""`resprout deploy` against a real Prefect server: what it makes, what it refuses, and how runs begin."""

from __future__ import annotations

import itertools
import json
import re
import threading
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from resprout.flows.flow_run import newer_due
from resprout.infra import network
from resprout.infra.prefect.flow_runs import in_a_row
from servers import free_port
from tiny_run import write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def post(api_url: str) -> Callable[[str, dict[str, Any]], Any]:
    """Answer of the session's Prefect server."""

    def call(path: str, body: dict[str, Any]) -> Any:
        return network.post(f"{api_url}/{path}", body)

    return call


@pytest.fixture(scope="module")
def pools(post: Callable[..., Any]) -> None:
    for name, kind in (("here", "process"), ("gpu", "docker"), ("cluster", "kubernetes")):
        post("work_pools/", {"name": name, "type": kind})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_run(tmp_path)


@pytest.fixture
def deploy(resprout: Callable[..., Any], home: Path, pools: None, config: Path) -> Callable[..., Any]:
    """`resprout deploy` of the tiny config to the process pool, unless another is named."""

    def call(*arguments: str, env: dict[str, str] | None = None) -> Any:
        pool = () if "--pool" in arguments else ("--pool", "here")
        return resprout("deploy", config, "--json", *pool, *arguments, home=home, env=env)

    return call


def named(post: Callable[..., Any], name: str) -> Any:
    (found,) = post("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return found


def test_a_deployment_has_schedule_limit_and_the_whole_config(
    deploy: Callable[..., Any], post: Callable[..., Any], config: Path
) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    before = datetime.now(berlin)
    done = deploy("seed=3", "--name", "mondays", "--cron", "0 2 * * 1", "--timezone", "Europe/Berlin")
    assert done.code == 0, done.err
    assert done.result["schedule"] == "At 02:00 on Monday (0 2 * * 1, Europe/Berlin)"
    times = [re.fullmatch(r"Mon (\d{4}-\d\d-\d\d) 02:00 CES?T", one) for one in done.result["next"]]
    days = [datetime.fromisoformat(one[1]) for one in times if one]
    assert [two - one for one, two in itertools.pairwise(days)] == [timedelta(days=7)] * 2
    first = days[0].replace(hour=2, tzinfo=berlin)
    assert before <= first <= before + timedelta(days=7, minutes=10)
    assert f"next: {', '.join(done.result['next'])}\n" in done.err
    made = named(post, "mondays")
    assert done.result["id"] == made["id"]
    (schedule,) = made["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * 1"
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert made["global_concurrency_limit"]["limit"] == 1
    assert made["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert made["entrypoint"] == "resprout.flows.compress.compress"
    assert made["enforce_parameter_schema"] is True
    assert made["parameters"]["config"]["seed"] == 3
    assert made["parameters"]["config"]["model"]["source"] == str(config.parent / "model")
    assert made["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"

    done = deploy("seed=4", "--name", "mondays", "--limit", "2", "--overlap", "cancel-new")
    assert done.code == 0, done.err
    again = named(post, "mondays")
    assert again["id"] == made["id"]
    assert again["parameters"]["config"]["seed"] == 4
    assert [one["schedule"]["cron"] for one in again["schedules"]] == ["0 2 * * 1"], "the schedule stays"
    assert again["global_concurrency_limit"]["limit"] == 2
    assert again["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    done = deploy("--name", "mondays", "--cron", "30 4 * * *")
    kept = named(post, "mondays")
    assert kept["global_concurrency_limit"]["limit"] == 2
    assert kept["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert [one["schedule"]["cron"] for one in named(post, "mondays")["schedules"]] == ["30 4 * * *"]


def test_job_variables_that_somebody_set_stay(deploy: Callable[..., Any], post: Callable[..., Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    made = deploy("--name", "tuned").result["id"]
    set_by_hand = {"working_dir": "/tmp", "env": {"OMP_NUM_THREADS": "1"}}
    with get_client(sync_client=True) as client:
        client.update_deployment(uuid.UUID(made), DeploymentUpdate(job_variables=set_by_hand))
    assert deploy("--name", "tuned").code == 0
    kept = named(post, "tuned")["job_variables"]
    heard = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    assert kept == {**set_by_hand, "env": {**set_by_hand["env"], **heard}}


def test_secrets_stay_variables(deploy: Callable[..., Any], post: Callable[..., Any], config: Path) -> None:
    data = yaml.safe_load(config.read_text())
    data["infra"] = {"store": {"access_key_id": "${MY_KEY}", "secret_access_key": "${MY_SECRET}"}}
    config.write_text(yaml.safe_dump(data))
    done = deploy("--name", "secret", env={"MY_KEY": "planted-key-31", "MY_SECRET": "planted-secret-32"})
    assert done.code == 0, done.err
    text = json.dumps(named(post, "secret"))
    assert "${MY_SECRET}" in text
    assert "planted" not in text + done.out + done.err


def test_the_server_itself_refuses_parameters_that_are_no_run_config(
    deploy: Callable[..., Any], post: Callable[..., Any]
) -> None:
    made = deploy("--name", "checked").result["id"]
    good = post(f"deployments/{made}/create_flow_run", {"parameters": {"overrides": ["seed=5"]}})
    assert good["parameters"]["overrides"] == ["seed=5"]
    config = named(post, "checked")["parameters"]["config"]
    for wrong in (
        {"overrides": "seed=5"},
        {"config": {**config, "prun": {}}},
        {"config": {**config, "seed": "x"}},
        {"config": 3},
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"deployments/{made}/create_flow_run", {"parameters": wrong})
        assert refused.value.code == 409


def test_pause_resume_run_and_delete(deploy: Callable[..., Any], post: Callable[..., Any]) -> None:
    assert deploy("--name", "handled", "--cron", "0 2 * * 1").code == 0
    assert deploy("--name", "handled", "--pause").result == {"paused": "handled"}
    assert named(post, "handled")["paused"] is True
    done = deploy("--name", "handled")
    assert done.result["paused"] == "--resume lets the schedule go on"
    assert "next" not in done.result
    assert named(post, "handled")["paused"] is True, "a new config does not start the schedule again"
    assert deploy("--name", "handled", "--resume").code == 0
    assert named(post, "handled")["paused"] is False
    assert len(named(post, "handled")["schedules"]) == 1
    done = deploy("--name", "handled", "--run", "--set", "seed=9")
    (run,) = post("flow_runs/filter", {"flow_runs": {"id": {"any_": [done.result["flow_run"]]}}})
    assert run["parameters"]["overrides"] == ["seed=9"]
    assert re.fullmatch(r"tiny \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", run["name"])
    assert done.result["name"] == run["name"]
    assert done.result["page"].endswith(f"/runs/flow-run/{run['id']}")
    assert deploy("--name", "handled", "--delete").code == 0
    gone = deploy("--name", "handled", "--resume")
    assert gone.code == 2
    assert "there is no deployment 'handled'" in gone.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--cron", "0 2 31 2 *"], "never fires"),
        (["--cron", "0 25 * * *"], "is malformed"),
        (["--cron", "hello"], "has not five fields"),
        (["--cron", "0 0 * * 5L"], "is none that Prefect keeps"),
        (["--cron", "0 2 * * 1", "--timezone", "Factory"], "there is no time zone 'Factory'"),
        (["--cron", "0 2 * * 1", "--timezone", "Europe/Berlim"], "did you mean Europe/Berlin"),
        (["--timezone", "Europe/Berlin"], "without --cron"),
        (["--pool", "nowhere"], "the work pool 'nowhere' does not exist (there are: "),
        (["--pool", "gpu"], "a run in the docker pool 'gpu' does not see them"),
        (["--overlap", "both"], "overlap is 'both'"),
        (["prun.round_to=8"], "did you mean 'prune'"),
        (["model.source=nothing-there"], "nothing-there"),
        (["--run", "--set", "prun.round_to=8"], "did you mean 'prune'"),
        (["--set", "seed=3"], "add --run"),
        (["--pause", "--resume"], "do not go together"),
        (["--pause", "--cron", "0 2 * * 1"], "do not go together"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    deploy: Callable[..., Any], post: Callable[..., Any], arguments: list[str], sentence: str
) -> None:
    done = deploy("--name", "unborn", *arguments)
    assert done.code == 2, done.err
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert post("deployments/filter", {"deployments": {"name": {"any_": ["unborn"]}}}) == []


@contextmanager
def server_of_version(version: str) -> Iterator[str]:
    """Something that answers like a Prefect server of another version."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(version if "version" in self.path else True).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
    finally:
        server.shutdown()


@pytest.mark.parametrize("version", ["2.20.3", "3.4.0", "4.0.0"])
def test_a_server_of_another_version_is_named(deploy: Callable[..., Any], version: str) -> None:
    with server_of_version(version) as url:
        done = deploy(env={"PREFECT_API_URL": url})
    assert done.code == 2, done.err
    assert f"is of version {version}, but this client needs 3.9" in done.err


def test_a_server_that_is_not_there_is_named(deploy: Callable[..., Any]) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = deploy(env={"PREFECT_API_URL": url})
    assert done.code == 2, done.err
    assert f"no Prefect server answers at {url}" in done.err
    assert "resprout up" in done.err


def test_the_shipped_prefect_yaml_deploys(
    pools: None, post: Callable[..., Any], api_url: str, tmp_path: Path
) -> None:
    import os
    import subprocess
    import sys

    post("work_pools/", {"name": "resprout", "type": "process"})
    image = f"registry.example.com/resprout@sha256:{'1' * 64}"
    done = subprocess.run(
        [
            sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all",
            "--prefect-file", str(ROOT / "infra" / "deploy" / "prefect.yaml"),
        ],
        cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api_url, "RESPROUT_IMAGE": image, "PWD": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    weekly, nightly, cluster = (named(post, name) for name in ("weekly", "nightly-gpu", "on-the-cluster"))
    assert [one["work_pool_name"] for one in (weekly, nightly, cluster)] == ["resprout", "gpu", "cluster"]
    assert weekly["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert cluster["global_concurrency_limit"]["limit"] == 4
    assert cluster["job_variables"]["image"] == nightly["job_variables"]["image"] == image
    assert weekly["parameters"]["config"] == str(ROOT / "configs" / "quickstart.yaml")
    # The worker of `resprout up` refuses a run that brings code, or names a folder to begin in.
    assert [weekly[name] for name in ("pull_steps", "path", "storage_document_id")] == [[], None, None]
    for one in (weekly, nightly, cluster):
        assert one["enforce_parameter_schema"] is True
        assert one["entrypoint"] == "resprout.flows.compress.compress"
        assert post(f"deployments/{one['id']}/create_flow_run", {"parameters": {"overrides": ["seed=2"]}})[
            "id"
        ]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"deployments/{one['id']}/create_flow_run", {"parameters": {"config": {"seed": 1}}})
        assert refused.value.code == 409


def test_of_the_times_that_were_missed_only_the_newest_is_made_up_for(
    deploy: Callable[..., Any], post: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    @flow
    def look(config: Any = None) -> str | None:
        return newer_due()

    made = deploy("--name", "missed", "--cron", "0 * * * *").result["id"]
    now = datetime.now(UTC)
    since = {"start_time": (now - timedelta(hours=4)).isoformat(), "end_time": now.isoformat()}
    post(f"deployments/{made}/schedule", {**since, "min_runs": 4, "max_runs": 4})
    runs = post(
        "flow_runs/filter",
        {
            "deployments": {"id": {"any_": [made]}},
            "flow_runs": {"expected_start_time": {"before_": now.isoformat()}},
            "sort": "EXPECTED_START_TIME_ASC",
        },
    )
    assert len(runs) == 4
    with get_client(sync_client=True) as client:
        first, *_, last = [client.read_flow_run(run["id"]) for run in runs]
        by_hand = client.create_flow_run_from_deployment(made)
    assert run_flow(look, flow_run=first, parameters={}) == last.name
    assert run_flow(look, flow_run=last, parameters={}) is None
    assert run_flow(look, flow_run=by_hand, parameters={}) is None, "who asks for a run gets it"

    def seen_by(own: Any) -> str | None:
        context = SimpleNamespace(get=lambda: SimpleNamespace(flow_run=own))
        monkeypatch.setattr("resprout.flows.flow_run.FlowRunContext", context)
        return newer_due()

    with get_client(sync_client=True) as client:
        second, third = (client.read_flow_run(run["id"]) for run in runs[1:3])
    assert seen_by(second) == third.name
    assert seen_by(second.model_copy(update={"parameters": {"config": {"seed": 9}}})) is None
    twin = third.model_copy(update={"id": uuid.uuid4()})
    assert seen_by(twin) is None, "another schedule of the deployment may have the same time"


def test_restarts_are_counted_from_the_last_start_by_a_person() -> None:
    own, again = ("SCHEDULED", "Scheduled"), ("SCHEDULED", "Restarting")
    late, ran, crashed = ("SCHEDULED", "Late"), ("RUNNING", "Running"), ("CRASHED", "Crashed")
    assert in_a_row([own, late, ran]) == 0
    assert in_a_row([own, ran, crashed, again, ran]) == 1
    assert in_a_row([own, ran, crashed, again, late, ran, crashed, again, ran]) == 2
    assert in_a_row([own, ran, crashed, again, ran, ("SCHEDULED", "AwaitingRetry"), ran]) == 0
    assert in_a_row([own, crashed, again, ("SCHEDULED", "AwaitingRetry"), crashed, again]) == 1


def test_one_death_counts_once_even_where_the_server_restarts_the_run_twice() -> None:
    own, again = ("SCHEDULED", "Scheduled"), ("SCHEDULED", "Restarting")
    late, ran, crashed = ("SCHEDULED", "Late"), ("RUNNING", "Running"), ("CRASHED", "Crashed")
    assert in_a_row([own, ran, crashed, again, again, ran, crashed, again, late, again, ran]) == 2
