"""`resprout triggers`, and the flow's own look whether a version is one of its exports."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from relaying import add_deployment, add_version, event, flow_runs, rule, write_rules
from resprout.configs.infrastructure import MlflowConfig, RelayConfig
from resprout.configs.load import document, load
from resprout.flows.compress import compress
from resprout.flows.rerun_command import standalone
from resprout.flows.stages import Artifacts, Step
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.network import post
from resprout.infra.triggers.state import FAILED, STARTED, WAITING, LastSeen, TriggerState
from resprout.tasks.core.run import Run
from tiny_run import write_data

Resprout = Callable[..., Any]


@pytest.fixture
def moved(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run's home, whose export was put elsewhere under new names, as a user's own model."""
    home, copy = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(finished.home, home)
    exported = Path(finished.result["exports"][0]["uri"].removeprefix("file://"))
    shutil.copytree(exported, copy)
    (copy / "README.md").write_text("all mine")
    monkeypatch.setenv("RESPROUT_HOME", str(home))
    return home


def triggered(finished: Any, home: Path, claim: str, **more: Any) -> Any:
    """State of a run that a version with the copied weights starts."""
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    number = add_version(tracker.client, "chat-mine", (home.parent / "elsewhere").as_uri())
    config = standalone(load(finished.config), document(finished.config))
    source = f'model.source="models:/chat-mine/{number}"'
    return compress(config, [source], claim=claim, return_state=True, **more)


def test_an_export_that_comes_back_without_tags_is_not_compressed_again(finished: Any, moved: Path) -> None:
    state = triggered(finished, moved, "rule chat-mine 1")
    assert (state.name, state.is_completed()) == ("OwnVersion", True)
    assert finished.result["exports"][0]["uri"].split("/content/")[1][:64] in state.message
    tracker = Tracker(MlflowConfig(), moved)
    tracker.connect()
    assert [one.name for one in tracker.client.search_registered_models()] == ["chat-mine", "tiny-pruned"]


def test_a_rule_for_own_versions_goes_on(finished: Any, moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Artifacts.make

    def stop(self: Artifacts, run: Run, steps: Iterable[Step]) -> None:
        wanted = list(steps)
        if wanted[0].inputs:
            raise KeyError("went on")
        make(self, run, wanted)

    monkeypatch.setattr(Artifacts, "make", stop)
    state = triggered(finished, moved, "rule chat-mine 1", own=True)
    assert state.is_failed()
    assert "went on" in state.message


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return write_rules(
        tmp_path / "rules",
        rule("chat", sources=["s3://models/"], overrides={"register.name": "{{ name }}-small"}),
        rule("code", models=["code-*"]),
        rule("champions", on=["alias"], aliases=["champion"]),
    )


def test_triggers_test_says_of_each_rule_what_it_starts_or_why_not(
    rules: Path, home: Path, tmp_path: Path, resprout: Resprout
) -> None:
    path = tmp_path / "event.json"
    path.write_bytes(event("chat-7b", 3, source="s3://models/chat-7b"))
    found = resprout("triggers", "test", "--event", path, "--rules", rules, home=home)
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        "models:/chat-7b/3, by the event alone",
        f"rule chat: starts {rules.parent / 'run.yaml'}",
        '  register.name="chat-7b-small"',
        '  model.source="models:/chat-7b/3"',
        "rule code: starts nothing, because the name chat-7b fits none of code-*",
        "rule champions: starts nothing, because it starts on alias, not on created",
    ]
    path.write_bytes(event("chat-7b", 3, source="s3://models/x", tags={"resprout.digest": "0" * 64}))
    told = resprout("triggers", "test", "--event", path, "--rules", rules, "--json", home=home)
    first = told.result["rules"][0]
    assert (first["rule"], first["starts"]) == ("chat", False)
    assert "resprout registered it" in first["why"]


def test_triggers_test_believes_the_registry_and_not_the_event(
    rules: Path, home: Path, tmp_path: Path, resprout: Resprout
) -> None:
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    add_version(tracker.client, "chat-7b", "s3://evil/x")
    path = tmp_path / "event.json"
    path.write_bytes(event("chat-7b", 1, source="s3://models/chat-7b"))
    found = resprout("triggers", "test", "--event", path, "--rules", rules, home=home)
    assert "by the registry at sqlite:" in found.out
    assert (
        "rule chat: starts nothing, because the rule does not accept its source s3://evil/x; its sources are "
        in found.out
    )


@pytest.mark.parametrize(
    ("body", "changes", "expected"),
    [
        (b"{}", {}, "is no delivery of MLflow; give JSON with entity, action"),
        (
            b'{"entity": "registered_model", "action": "created"}',
            {},
            "starts nothing; give",
        ),
        (None, {}, "no event at"),
        (event("chat-7b", 1), {"modles": ["x"]}, "did you mean 'models'"),
        (event("chat-7b", 1), {"config": "none*.yaml"}, "matches no file"),
        (event("chat-7b", 1), {"aliases": ["x"]}, "can never match"),
    ],
)
def test_wrong_rules_and_events_end_with_two(
    body: bytes | None, changes: dict[str, Any], expected: str, home: Path, tmp_path: Path, resprout: Resprout
) -> None:
    path = tmp_path / "event.json"
    if body is not None:
        path.write_bytes(body)
    written = write_rules(tmp_path / "rules", rule(**changes))
    found = resprout("triggers", "test", "--event", path, "--rules", written, home=home)
    assert found.code == 2
    assert expected in found.err


def entry(version: int, state: str, **more: Any) -> LastSeen:
    return LastSeen("chat", "chat-7b", str(version), 1_700_000_000_000, state=state, **more)


def test_triggers_status_shows_what_waits_what_failed_and_what_was_started(
    home: Path, resprout: Resprout
) -> None:
    none = resprout("triggers", "status", home=home)
    assert none.code == 2
    assert "no relay has run with the data folder" in none.err
    state = TriggerState.open(RelayConfig(), home)
    state.put([entry(2, FAILED, reason="the registry holds no such version any more")])
    state.put([entry(3, WAITING, alias="champion", reason="Prefect does not answer")])
    state.note_start(entry(1, STARTED, flow_run_id="run-1"))
    state.note_start(entry(1, STARTED, flow_run_id="run-2", attempt=1))
    state.close()
    found = resprout("triggers", "status", home=home)
    assert found.code == 0, found.err
    assert found.out.startswith("1 waiting, 2 started, 1 failed\n")
    lines = [line[20:] for line in found.out.splitlines()[1:]]
    assert lines == [
        "waiting: chat-7b version 3 as champion by rule chat (id 2): Prefect does not answer",
        "failed: chat-7b version 2 by rule chat (id 1): the registry holds no such version any more",
        "started again (1): chat-7b version 1 by rule chat: flow run run-2",
        "started: chat-7b version 1 by rule chat: flow run run-1",
    ]
    shown = json.loads(resprout("triggers", "status", "--json", home=home).out)
    assert {name: shown["counts"][name] for name in ("waiting", "started", "failed")} == {
        "waiting": 1, "started": 2, "failed": 1,
    }  # fmt: skip
    assert shown["failed"][0]["reason"] == "the registry holds no such version any more"
    assert shown["waiting"][0]["alias"] == "champion"


def test_triggers_retry_has_what_failed_wait_again(home: Path, resprout: Resprout) -> None:
    home.mkdir(exist_ok=True)
    state = TriggerState.open(RelayConfig(), home)
    state.put([entry(0, WAITING), *(entry(number, FAILED) for number in range(1, 4))])
    ids = [one.id for one in state.entries("chat-7b")]
    assert resprout("triggers", "retry", home=home).code == 2
    assert resprout("triggers", "retry", "--all", "1", home=home).code == 2
    found = resprout("triggers", "retry", ids[1], home=home)
    assert (found.code, found.out) == (0, "1 waiting again\n"), found.err
    assert [one.version for one in state.newest(FAILED)] == ["3", "2"]
    wrong = resprout("triggers", "retry", ids[0], ids[2], home=home)
    assert wrong.code == 2
    assert "1 of 2 had failed" in wrong.err
    assert resprout("triggers", "retry", "--all", home=home).out == "1 waiting again\n"
    assert sorted(one.version for one in state.newest(WAITING)) == ["0", "1", "2", "3"]
    state.close()


def test_triggers_again_starts_a_version_once_more_under_a_key_of_its_own(
    home: Path, tmp_path: Path, resprout: Resprout, api_url: str
) -> None:
    named = f"rule-{uuid.uuid4().hex[:8]}"
    rules = write_rules(tmp_path / "rules", rule(named, sources=["s3://models/"], overrides={"seed": 3}))
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    number = add_version(tracker.client, "chat-7b", "s3://models/x")
    add_version(tracker.client, "chat-evil", "s3://evil/x")
    env = {"RESPROUT_INFRA__PREFECT__API_URL": api_url}

    def again(*words: str) -> Any:
        return resprout("triggers", "again", *words, "--rules", rules, home=home, env=env)

    for words, expected in [
        (("other", "chat-7b", "1"), f"no rule is called other; give one of {named}"),
        ((named, "chat-7b", "9"), "has no models:/chat-7b/9"),
        ((named, "code-7b", "1"), "has no models:/code-7b/1"),
        ((named, "chat-evil", "1"), "the rule does not accept its source s3://evil/x"),
        ((named, "chat-7b", number), f"Prefect has no deployment compress/{named}"),
    ]:
        found = again(*words)
        assert found.code == 2
        assert expected in found.err
    deployment = add_deployment(named)
    said = [again(named, "chat-7b", number) for _ in range(3)]
    runs = {str(run.id): run.parameters for run in flow_runs(deployment)}
    assert {found.out for found in said} == {f"flow run {one}\n" for one in runs}
    assert len(runs) == 3
    created = tracker.client.get_model_version("chat-7b", number).creation_timestamp
    key = f"{named} chat-7b 1 {created}"
    assert sorted(run["claim"] for run in runs.values()) == [key, f"{key} again-1", f"{key} again-2"]
    assert all(run["overrides"] == ["seed=3", 'model.source="models:/chat-7b/1"'] for run in runs.values())
    state = TriggerState.open(RelayConfig(), home)
    assert sorted((one.attempt, one.flow_run_id) for one in state.newest(STARTED)) == [
        (attempt, found.out.split()[-1]) for attempt, found in enumerate(said)
    ]
    state.close()


def test_apply_refuses_a_webhook_that_nobody_would_send(rules: Path, home: Path, resprout: Resprout) -> None:
    url = "https://relay.example.com/webhooks/mlflow"
    found = resprout("triggers", "apply", "--rules", rules, "--url", url, home=home)
    assert found.code == 2
    assert "only an MLflow server sends webhooks" in found.err
    env = {"RESPROUT_INFRA__MLFLOW__TRACKING_URI": "http://127.0.0.1:9"}
    found = resprout("triggers", "apply", "--rules", rules, "--url", url, home=home, env=env)
    assert found.code == 2
    assert "infra.relay.webhook_secret is not set" in found.err


def triggers_of(api_url: str) -> dict[str, str]:
    """Id of each automation's trigger, which an update changes."""
    return {one["name"]: one["trigger"]["id"] for one in post(f"{api_url}/automations/filter", {})}


def test_apply_makes_the_deployment_of_every_rule_and_a_trigger_starts_it(
    rules: Path, home: Path, resprout: Resprout, api_url: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from resprout.configs.infrastructure import PrefectConfig
    from resprout.infra.prefect.flow_runs import FlowRuns

    write_data(rules.parent)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="triggers", type="process"), overwrite=True)
    env = {"RESPROUT_INFRA__STACK__POOL": "triggers", "RESPROUT_INFRA__PREFECT__API_URL": api_url}
    names = ("chat", "code", "champions")
    for _ in range(2):
        found = resprout("triggers", "apply", "--rules", rules, home=home, env=env)
        assert found.code == 0, found.err
        assert found.out.splitlines() == [f"deployment compress/{name}" for name in names]
    made = triggers_of(api_url)
    assert "resprout: begin a crashed run again" in made
    nobody = {**env, "RESPROUT_INFRA__PREFECT__NOTIFY": "slack-webhook/nobody"}
    found = resprout("triggers", "apply", "--rules", rules, home=home, env=nobody)
    assert found.code == 0, found.err
    assert "no notice is sent of runs that fail: infra.prefect.notify names slack-webhook/nobody" in found.err
    assert triggers_of(api_url) == made, "with another trigger the server forgets which runs it watches"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pods", type="kubernetes"), overwrite=True)
    far = {**env, "RESPROUT_INFRA__STACK__POOL": "pods"}
    found = resprout("triggers", "apply", "--rules", rules, home=home, env=far)
    assert found.code == 2
    assert "rule chat: " in found.err
    assert "a run in the kubernetes pool 'pods' does not see them" in found.err
    runs = FlowRuns(PrefectConfig(), api_url)
    (run_id,) = {runs.start("chat", "chat chat-7b 3", "chat-7b-3", ["seed=3"], own=True) for _ in range(2)}
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(uuid.UUID(run_id))
    assert run.parameters["overrides"] == ["seed=3"]
    assert run.parameters["own"] is True
    assert run.parameters["config"]["name"] == "tiny"
    assert Path(run.parameters["config"]["model"]["source"]).is_absolute()
