"""What no webhook told is found by looking, once; the first look starts nothing that no rule backfills."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relaying import add_deployment, add_version, rule, until, write_rules
from resprout.configs.errors import Transient
from resprout.configs.rules import Rule, load_rules
from resprout.configs.schema import MlflowConfig, PrefectConfig
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import WAITING, Outbox
from resprout.infra.relay.poll import Poll, PollThread
from resprout.infra.relay.registry import PAGE, Registry, Version
from resprout.infra.relay.starter import Missing, Starter

Make = Callable[..., Poll]


@pytest.fixture
def make_poll(outbox: Outbox, registry: Registry, tmp_path: Path) -> Make:
    def make(*rules: dict[str, Any]) -> Poll:
        return Poll(load_rules(write_rules(tmp_path / "rules", *rules)), outbox, registry)

    return make


def waiting(outbox: Outbox) -> list[tuple[str, str, str]]:
    return [(row.kind, row.name, row.version) for row in outbox.rows(WAITING)]


def test_the_first_look_is_where_things_begin(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    poll = make_poll()
    assert poll.once() == 0
    assert waiting(outbox) == []
    add_version(mlflow, "chat-7b")
    add_version(mlflow, "chat-new")
    add_version(mlflow, "other")
    assert poll.once() == 2
    assert waiting(outbox) == [("created", "chat-7b", "3"), ("created", "chat-new", "1")]
    assert poll.once() == 0


def test_aliases_and_tags_are_found_though_they_date_nothing(
    make_poll: Make, outbox: Outbox, mlflow: Any
) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    poll = make_poll()
    poll.once()
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    mlflow.set_model_version_tag("chat-7b", "2", "stage", "prod")
    poll.once()
    assert waiting(outbox) == [("alias", "chat-7b", "1"), ("tag", "chat-7b", "2")]
    mlflow.set_registered_model_alias("chat-7b", "champion", "2")
    mlflow.delete_model_version_tag("chat-7b", "2", "stage")
    poll.once()
    assert waiting(outbox)[2:] == [("alias", "chat-7b", "2")], "what is taken away starts nothing"
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    assert poll.once() == 1, "the same alias once more is told of once more"


def test_a_new_version_that_has_an_alias_already_tells_of_both(
    make_poll: Make, outbox: Outbox, mlflow: Any
) -> None:
    poll = make_poll()
    poll.once()
    add_version(mlflow, "chat-7b", tags={"stage": "prod"})
    mlflow.set_registered_model_alias("chat-7b", "champion", "1")
    poll.once()
    assert waiting(outbox) == [("created", "chat-7b", "1"), ("alias", "chat-7b", "1")]


def test_a_rule_may_backfill_once(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    add_version(mlflow, "other")
    make_poll(rule("plain")).once()
    poll = make_poll(rule("plain"), rule("late", backfill=True))
    assert poll.once() == 2
    assert waiting(outbox) == [("backfill", "chat-7b", "1"), ("backfill", "chat-7b", "2")]
    assert poll.once() == 0


def test_a_rule_that_is_added_or_widened_starts_no_old_version(
    make_poll: Make, outbox: Outbox, mlflow: Any
) -> None:
    for name in ("chat-7b", "code-7b"):
        for _ in range(3):
            add_version(mlflow, name)
    make_poll().once()
    add_version(mlflow, "code-7b")
    second = rule("second", models=["c*-7b"], on=["created", "alias", "tag"])
    poll = make_poll(rule(), second)
    assert poll.once() == 0
    number = add_version(mlflow, "code-7b")
    assert poll.once() == 1
    assert waiting(outbox) == [("created", "code-7b", number)]
    # For a while no rule is for it, and what happens meanwhile is old for the rule that comes back.
    make_poll().once()
    add_version(mlflow, "code-7b")
    make_poll().once()
    assert poll.once() == 0


def test_a_widened_rule_backfills_the_models_it_gains(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    for name in ("chat-7b", "code-7b"):
        add_version(mlflow, name)
    assert make_poll(rule(backfill=True)).once() == 1
    poll = make_poll(rule(backfill=True, models=["chat-*", "code-*"]))
    assert poll.once() == 1
    add_version(mlflow, "code-new")
    assert poll.once() == 1
    assert waiting(outbox) == [
        ("backfill", "chat-7b", "1"), ("backfill", "code-7b", "1"), ("created", "code-new", "1"),
    ]  # fmt: skip


def test_a_model_that_is_made_again_is_a_new_one(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    poll = make_poll()
    poll.once()
    for _ in range(2):
        add_version(mlflow, "chat-7b")
    assert poll.once() == 2
    mlflow.delete_registered_model("chat-7b")
    add_version(mlflow, "chat-7b")
    assert poll.once() == 1
    assert waiting(outbox)[2:] == [("created", "chat-7b", "1")]
    assert poll.once() == 0
    # Also where no rule was for the first one.
    add_version(mlflow, "code-7b")
    poll.once()
    mlflow.delete_registered_model("code-7b")
    add_version(mlflow, "code-7b")
    assert make_poll(rule(models=["*"])).once() == 1


def test_two_relays_see_a_change_as_one(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    one, other = make_poll(), make_poll()
    one.once()
    add_version(mlflow, "chat-7b")
    seen = outbox.seen
    before = seen()
    assert one.once() == 1
    # The other had read what was seen before the first wrote.
    other.outbox = Outbox(outbox.engine)
    other.outbox.seen = lambda: before  # type: ignore[method-assign]
    assert other.once() == 0
    assert len(waiting(outbox)) == 1


def test_all_pages_are_read(make_poll: Make, outbox: Outbox, mlflow: Any) -> None:
    poll = make_poll()
    poll.once()
    mlflow.create_registered_model("chat-many")
    for _ in range(PAGE + 5):
        mlflow.create_model_version("chat-many", "s3://models/x")
    assert poll.once() == PAGE + 5


def test_a_registry_that_does_not_answer_is_told_of_once_and_looked_at_again(
    outbox: Outbox,
    home: Path,
    tmp_path: Path,
    registry: Registry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    rules = load_rules(write_rules(tmp_path / "rules"))
    dead = Registry(MlflowConfig(tracking_uri="http://user:hunter2@127.0.0.1:9"), home)
    poll, metrics = Poll(rules, outbox, dead), Metrics()
    with pytest.raises(Transient):
        poll.once()
    thread = PollThread(poll, Starter(PrefectConfig(), "http://127.0.0.1:9/api"), 0.05, metrics)
    thread.start()
    try:
        until(lambda: b'failures_total{kind="poll"} 2.0' in metrics.render(outbox), 60)
        poll.registry = registry
        until(lambda: b"last_poll_timestamp_seconds 0.0" not in metrics.render(outbox), 30)
    finally:
        thread.stop()
    lines = [one.message for one in caplog.records if "could not be looked at" in one.message]
    assert len(lines) == 1
    assert "hunter2" not in caplog.text


def test_how_prefect_s_runs_are_can_be_watched(
    make_poll: Make, outbox: Outbox, api_url: str, mlflow: Any
) -> None:
    starter, metrics = Starter(PrefectConfig(), api_url), Metrics()
    add_deployment("watched")
    before = starter.runs()["scheduled"]
    version = Version("chat-watched", "1", "s3://models/x")
    starter.start(Rule.model_validate(rule("watched")), version, [])
    thread = PollThread(make_poll(), starter, 60.0, metrics)
    thread.start()
    try:
        wanted = f'resprout_flow_runs{{state="scheduled"}} {before + 1}.0'.encode()
        until(lambda: wanted in metrics.render(outbox), 30)
    finally:
        thread.stop()


@pytest.mark.parametrize("fault", [ValueError("an answer in HTML"), Missing()])
def test_a_count_of_runs_that_fails_ends_no_looking(
    make_poll: Make, outbox: Outbox, mlflow: Any, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(_: Starter) -> dict[str, int]:
        raise fault

    monkeypatch.setattr(Starter, "runs", fail)
    metrics = Metrics()
    thread = PollThread(make_poll(), Starter(PrefectConfig(), "http://127.0.0.1:9/api"), 0.05, metrics)
    thread.start()
    count = ("resprout_relay_failures_total", {"kind": "runs"})
    try:
        until(lambda: (metrics.registry.get_sample_value(*count) or 0) >= 2, 30)
        add_version(mlflow, "chat-7b")
        until(lambda: waiting(outbox) == [("created", "chat-7b", "1")], 30)
    finally:
        thread.stop()


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
        starter = Starter(PrefectConfig(), f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(Transient, match="is no Prefect server"):
            starter.runs()
        server.shutdown()
