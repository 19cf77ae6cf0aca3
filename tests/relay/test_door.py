"""What comes in over HTTP: only proven deliveries, each once, and no secret in any log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from relaying import SECRET, event, signed
from resprout.configs.schema import RelayConfig
from resprout.infra.relay.app import PATH, Bucket, Door
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import WAITING, Outbox
from resprout.infra.relay.writer import Writer


@contextmanager
def door(outbox: Outbox, **changes: Any) -> Iterator[TestClient]:
    writer = Writer(outbox)
    writer.start()
    config = RelayConfig(webhook_secret=SecretStr(SECRET), **changes)
    try:
        with TestClient(Door(config, writer, outbox, Metrics(), lambda: None).app()) as client:
            yield client
    finally:
        writer.stop()


@pytest.fixture
def client(outbox: Outbox) -> Iterator[TestClient]:
    with door(outbox) as found:
        yield found


def metric(client: TestClient, line: str) -> float:
    text = client.get("/metrics").text
    found = [one.rpartition(" ")[2] for one in text.splitlines() if one.startswith(line)]
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize("kind", ["created", "alias", "tag"])
def test_a_signed_delivery_is_kept_by_name_and_version_alone(
    client: TestClient, outbox: Outbox, kind: str
) -> None:
    body = event("chat-7b", 3, kind)
    assert client.post(PATH, content=body, headers=signed(body)).text == "accepted"
    (row,) = outbox.rows(WAITING)
    assert (row.kind, row.name, row.version) == (kind, "chat-7b", "3")
    assert metric(client, "resprout_relay_waiting") == 1
    assert metric(client, 'resprout_relay_deliveries_total{outcome="accepted"}') == 1
    assert 0 <= metric(client, "resprout_relay_oldest_unhandled_seconds") < 30


def test_a_delivery_told_again_is_answered_and_kept_once(client: TestClient, outbox: Outbox) -> None:
    body = event("chat-7b", 3)
    headers = signed(body, "delivery-1")
    answers = [client.post(PATH, content=body, headers=headers) for _ in range(3)]
    assert [(answer.status_code, answer.text) for answer in answers] == [
        (200, "accepted"), (200, "duplicate"), (200, "duplicate"),
    ]  # fmt: skip
    assert len(outbox.rows(WAITING)) == 1


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
    client: TestClient, outbox: Outbox, body: bytes, headers: dict[str, str], reason: str
) -> None:
    assert client.post(PATH, content=body, headers=headers).status_code == 401
    assert outbox.rows(WAITING) == []
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
    client: TestClient, outbox: Outbox, body: bytes
) -> None:
    assert client.post(PATH, content=body, headers=signed(body)).status_code == 400
    assert outbox.rows(WAITING) == []


def test_a_delivery_that_no_rule_can_be_for_is_not_kept(client: TestClient, outbox: Outbox) -> None:
    body = b'{"entity": "registered_model", "action": "created", "data": {"name": "a"}}'
    assert client.post(PATH, content=body, headers=signed(body)).text == "ignored"
    assert outbox.rows(WAITING) == []


def test_a_large_delivery_is_refused_by_what_it_says_and_by_what_it_sends(
    client: TestClient, outbox: Outbox
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
    assert outbox.rows(WAITING) == []
    assert metric(client, 'resprout_relay_refused_total{reason="size"}') == 2


def test_more_than_the_rate_are_told_to_come_again(outbox: Outbox) -> None:
    with door(outbox, rate_per_second=5.0) as client:
        body = event("chat-7b", 3)
        answers = [client.post(PATH, content=body, headers=signed(body)) for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["Retry-After"] == "1"
    assert len(outbox.rows(WAITING)) == 12 - len(refused) >= 5


def test_forgeries_keep_no_delivery_out(outbox: Outbox) -> None:
    body = event("chat-7b", 3)
    with door(outbox, rate_per_second=5.0) as client:
        wrong = [client.post(PATH, content=body, headers=signed(body, secret="wrong")) for _ in range(20)]
        assert {answer.status_code for answer in wrong} == {401}
        assert client.post(PATH, content=body, headers=signed(body)).status_code == 200


def test_the_bucket_fills_by_its_rate() -> None:
    now = 0.0
    bucket = Bucket(2.0, lambda: now)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_an_outbox_that_cannot_keep_a_delivery_refuses_it(
    client: TestClient, outbox: Outbox, home: Any
) -> None:
    from sqlalchemy import text

    with outbox.engine.begin() as connection:
        connection.execute(text("DROP TABLE relay_deliveries"))
    body = event("chat-7b", 3)
    answer = client.post(PATH, content=body, headers=signed(body))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert "nan" in client.get("/metrics").text.lower()


def test_no_secret_is_in_any_log_or_answer(
    outbox: Outbox, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with door(outbox) as client:
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
