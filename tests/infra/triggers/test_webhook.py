"""What comes in over HTTP: only proven deliveries, no faster than allowed, and no secret in any log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from relaying import SECRET, event, signed, until
from resprout.configs.infrastructure import RelayConfig
from resprout.infra.triggers.reconciler import Reconciler
from resprout.infra.triggers.webhook import PATH, TokenBucket, Webhook


@pytest.fixture
def reconciler(make: Callable[..., Reconciler]) -> Reconciler:
    """One that does not look, so that what it is told can be seen."""
    return make()


@contextmanager
def webhook(reconciler: Reconciler, **changes: Any) -> Iterator[TestClient]:
    config = RelayConfig(webhook_secret=SecretStr(SECRET), **changes)
    with TestClient(Webhook(config, reconciler).app()) as client:
        yield client


@pytest.fixture
def client(reconciler: Reconciler) -> Iterator[TestClient]:
    with webhook(reconciler) as found:
        yield found


def metric(client: TestClient, line: str) -> float:
    text = client.get("/metrics").text
    found = [one.rpartition(" ")[2] for one in text.splitlines() if one.startswith(line)]
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize("kind", ["created", "alias", "tag"])
def test_a_signed_delivery_wakes_for_its_name_alone(
    client: TestClient, reconciler: Reconciler, kind: str
) -> None:
    body = event("chat-7b", 3, kind)
    answer = client.post(PATH, content=body, headers=signed(body))
    assert (answer.status_code, answer.text) == (202, "accepted")
    assert list(reconciler.woken()) == ["chat-7b"]
    assert metric(client, 'resprout_relay_deliveries_total{outcome="accepted"}') == 1
    assert 0 <= metric(client, "resprout_relay_oldest_unhandled_seconds") < 30


def test_deliveries_about_one_model_are_one_look(client: TestClient, reconciler: Reconciler) -> None:
    for version in range(5):
        body = event("chat-7b", version)
        headers = signed(body, "delivery-1")
        assert [client.post(PATH, content=body, headers=headers).status_code for _ in range(2)] == [202, 202]
    assert list(reconciler.woken()) == ["chat-7b"]


def forged() -> Iterator[tuple[str, bytes, dict[str, str], str]]:
    body, now = event("chat-7b", 3), time.time()
    right = signed(body)
    yield "tampered body", event("chat-7b", 4), right, "signature"
    yield "wrong secret", body, signed(body, secret="another"), "signature"
    yield "no signature", body, {k: v for k, v in right.items() if "Signature" not in k}, "signature"
    yield "empty signature", body, {**right, "X-MLflow-Signature": ""}, "signature"
    yield (
        "another scheme",
        body,
        {**right, "X-MLflow-Signature": right["X-MLflow-Signature"][3:]},
        "signature",
    )
    yield "another id", body, {**right, "X-MLflow-Delivery-Id": "another"}, "signature"
    yield "another time", body, {**right, "X-MLflow-Timestamp": str(int(now) + 1)}, "signature"
    yield "no id", body, {**right, "X-MLflow-Delivery-Id": ""}, "headers"
    yield "time in words", body, {**right, "X-MLflow-Timestamp": "now"}, "headers"
    yield "old", body, signed(body, at=now - 400), "time"
    # A day, because a long run of the tests may come here half an hour after the cases were made.
    yield "from the future", body, signed(body, at=now + 86400), "time"


@pytest.mark.parametrize(
    ("body", "headers", "reason"), [pytest.param(*one[1:], id=one[0]) for one in forged()]
)
def test_what_is_not_proven_is_refused(
    client: TestClient, reconciler: Reconciler, body: bytes, headers: dict[str, str], reason: str
) -> None:
    assert client.post(PATH, content=body, headers=headers).status_code == 401
    assert reconciler.woken() == {}
    assert metric(client, f'resprout_relay_refused_total{{reason="{reason}"}}') == 1


def test_clock_skew_is_one_sentence(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    body = event("chat-7b", 3)
    for _ in range(3):
        client.post(PATH, content=body, headers=signed(body, at=time.time() - 1000))
    (line,) = [one.message for one in caplog.records if one.name == "resprout.relay"]
    assert re.search("100[0-9] s behind this machine's clock, where 300 s are allowed", line)
    assert "set both by NTP" in line


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"entity": ["model_version"], "action": "created", "data": {}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "a"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "a", "version": "x"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": {}, "version": "1"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "", "version": "1"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "chat-\\ud800", "version": "1"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "chat-\\u0000", "version": "1"}}',
        b'{"entity": "model_version", "action": "created", "data": {"name": "chat-\\nx", "version": "1"}}',
    ],
)
def test_a_signed_delivery_of_another_form_is_refused(
    client: TestClient, reconciler: Reconciler, body: bytes
) -> None:
    assert client.post(PATH, content=body, headers=signed(body)).status_code == 400
    assert reconciler.woken() == {}


def test_a_delivery_that_no_rule_can_be_for_wakes_nobody(client: TestClient, reconciler: Reconciler) -> None:
    body = b'{"entity": "registered_model", "action": "created", "data": {"name": "a"}}'
    assert client.post(PATH, content=body, headers=signed(body)).text == "ignored"
    other = event("other-model", 1)
    assert client.post(PATH, content=other, headers=signed(other)).text == "accepted"
    assert reconciler.woken() == {}


def test_a_large_delivery_is_refused_by_what_it_says_and_by_what_it_sends(
    client: TestClient, reconciler: Reconciler
) -> None:
    body = b"x" * 10_000_000
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for start in range(0, len(body), 65536):
            sent += 65536
            yield body[start : start + 65536]

    assert client.post(PATH, content=body, headers=signed(body)).status_code == 413
    # Without a length it is counted while it is read.
    assert client.post(PATH, content=pieces(), headers=signed(body)).status_code == 413
    assert reconciler.woken() == {}
    assert metric(client, 'resprout_relay_refused_total{reason="size"}') == 2


def test_more_than_the_rate_are_told_to_come_again(reconciler: Reconciler) -> None:
    with webhook(reconciler, rate_per_second=5.0) as client:
        body = event("chat-7b", 3)
        answers = [client.post(PATH, content=body, headers=signed(body)) for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["Retry-After"] == "1"
    assert 12 - len(refused) >= 5


def test_forgeries_keep_no_delivery_out(reconciler: Reconciler) -> None:
    body = event("chat-7b", 3)
    with webhook(reconciler, rate_per_second=5.0) as client:
        wrong = [client.post(PATH, content=body, headers=signed(body, secret="wrong")) for _ in range(20)]
        assert {answer.status_code for answer in wrong} == {401}
        assert client.post(PATH, content=body, headers=signed(body)).status_code == 202


def test_the_bucket_fills_by_its_rate() -> None:
    now = 0.0
    bucket = TokenBucket(2.0, lambda: now)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_without_its_database_the_relay_takes_deliveries_and_says_so(
    client: TestClient, reconciler: Reconciler
) -> None:
    from sqlalchemy import text

    with reconciler.state.engine.begin() as connection:
        connection.execute(text("DROP TABLE trigger_states"))
    body = event("chat-7b", 3)
    assert client.post(PATH, content=body, headers=signed(body)).status_code == 202
    assert "nan" in client.get("/metrics").text.lower()


def test_it_is_healthy_once_it_has_tried_to_look(reconciler: Reconciler) -> None:
    with webhook(reconciler) as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.text) == (503, "the registry has not been read yet")
        reconciler.start()
        until(lambda: client.get("/health").text == "ok", 30)
        reconciler.stop()
        assert client.get("/health").text == "relay-reconciler has stopped"


def test_more_names_than_can_be_kept_become_one_look_at_everything(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resprout.infra.triggers.reconciler.MOST_WOKEN", 3)
    reconciler.look()
    for number in range(5):
        reconciler.wake(f"chat-{number}")
    assert len(reconciler.woken()) == 3
    assert reconciler.is_due()


def test_no_secret_is_in_any_log_or_answer(
    reconciler: Reconciler, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with webhook(reconciler) as client:
        for body, headers in [
            *((body, headers) for _, body, headers, _ in forged()),
            (event("chat-7b", 3), signed(event("chat-7b", 3))),
            (event("chat-7b", 3, password="payload-secret-77"), signed(b"other")),
            (b'{"password": "payload-secret-77"}', signed(b'{"password": "payload-secret-77"}')),
        ]:
            answer = client.post(PATH, content=body, headers=headers)
            said += [answer.text, str(answer.headers)]
        said.append(client.get("/metrics").text)
    out, err = capfd.readouterr()
    # The test's own client logs nothing of what it sends.
    everything = "\n".join([*said, caplog.text, out, err])
    assert "refused" in everything
    for secret in (
        SECRET,
        "payload-secret-77",
        *(h["X-MLflow-Signature"] for _, _, h, _ in forged() if len(h) == 4),
    ):
        if secret:
            assert secret not in everything
