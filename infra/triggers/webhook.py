"""MLflow's webhook: register it and receive it; a signed delivery only wakes the reconciler.

Signature: "v1," + base64(HMAC-SHA256(secret, "<delivery id>.<timestamp>.<body>")), after Standard Webhooks.
It proves the server that sent it, not who registered the version, so nothing of a delivery is believed but
that the model of this name is worth a look now. It is kept in memory alone: one that is lost, or that comes
twice, costs at most a look.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import RelayConfig, one_line, without_credentials
from resprout.infra.mlflow.search import pages
from resprout.infra.triggers.reconciler import Reconciler

PATH = "/webhooks/mlflow"
HOOK_NAME = "resprout-relay"
ID, TIMESTAMP, SIGNATURE = "x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"
EVENTS = {
    "model_version.created": "created",
    "model_version_alias.created": "alias",
    "model_version_tag.set": "tag",
}
"""MLflow's names of the events that can start a rule, with the rules' own."""
MOST_CHARS = 256
BODY_SECONDS = 10.0
QUIET_SECONDS = 10.0

log = logging.getLogger("resprout.relay")


class Refused(Exception):
    """A delivery that is not taken: the HTTP status, a word for the metrics, and a sentence for the log."""

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.reason, self.sentence = status, reason, sentence


@dataclass(frozen=True)
class Delivery:
    """The subject of a delivery: a version to which something of `kind` (created, alias, tag) happened."""

    kind: str
    name: str
    version: str


def verify(headers: Mapping[str, str], body: bytes, secret: bytes, now: float, window: float) -> None:
    """Raise Refused where signature or time of a delivery is wrong."""
    identity, stamp, given = (headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    if (
        not identity
        or len(identity) > MOST_CHARS
        or not identity.isprintable()
        or not (stamp.isascii() and stamp.isdigit())
        or len(stamp) > 12
    ):
        raise Refused(401, "headers", "a delivery without MLflow's id or timestamp")
    signed = b".".join((identity.encode("latin-1", "replace"), stamp.encode(), body))
    wanted = b"v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest())
    one_of = given.encode("latin-1", "replace").split()
    if not any(hmac.compare_digest(wanted, one) for one in one_of):
        raise Refused(
            401,
            "signature",
            "a delivery whose signature is wrong; infra.relay.webhook_secret must be that of the webhook",
        )
    apart = now - int(stamp)
    if abs(apart) > window:
        raise Refused(
            401,
            "time",
            f"a signed delivery whose time is {abs(apart):.0f} s {'behind' if apart > 0 else 'ahead of'} "
            f"this machine's clock, where {window:.0f} s are allowed: it is a replay, or the clocks of "
            "MLflow's machine and this one differ (set both by NTP)",
        )


def parse(body: bytes) -> Delivery | None:
    """Return the subject of a body, None where no rule can be for it; Refused where it is malformed."""
    try:
        data = json.loads(body)
        kind = EVENTS.get(".".join((data["entity"], data["action"])))
        if kind is None:
            return None
        name, version = data["data"]["name"], str(data["data"]["version"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Refused(400, "malformed", "a signed delivery that is not of the form MLflow sends") from None
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MOST_CHARS
        # No database keeps a NUL or half a surrogate pair, and a line break would forge lines of the log.
        or not name.isprintable()
        or len(version) > MOST_CHARS
        or not version.isascii()
        or not version.isdigit()
    ):
        raise Refused(400, "malformed", "a signed delivery that names no model version")
    return Delivery(kind, name, version)


class TokenBucket:
    """A token bucket: `rate` a second, and a second's worth at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.most, self.clock = rate, max(1.0, rate), clock
        self.held, self.at = self.most, clock()

    def take(self) -> bool:
        """Whether there was a token."""
        now = self.clock()
        self.held, self.at = min(self.most, self.held + (now - self.at) * self.rate), now
        if self.held < 1.0:
            return False
        self.held -= 1.0
        return True


class Webhook:
    """The relay's HTTP side: take a delivery, prove it, wake the reconciler, answer."""

    def __init__(self, config: RelayConfig, reconciler: Reconciler) -> None:
        if config.webhook_secret is None:
            raise ValueError("a relay without a secret would take anyone's word")
        self.config, self.reconciler, self.metrics = config, reconciler, reconciler.metrics
        self.bucket = TokenBucket(config.rate_per_second)
        self._secret = config.webhook_secret.get_secret_value().encode()
        self._logged: dict[str, float] = {}

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route(PATH, self.receive, methods=["POST"]),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
            ]
        )

    async def receive(self, request: Request) -> Response:
        """Answer 202 once the reconciler knows which model to look at."""
        try:
            body = await self._body(request)
            verify(request.headers, body, self._secret, time.time(), self.config.window_seconds)
            # Only what is proven counts, or anyone's forgeries would keep MLflow out.
            if not self.bucket.take():
                raise Refused(429, "rate", "more deliveries than infra.relay.rate_per_second")
            delivery = parse(body)
        except Refused as fault:
            return self._refuse(fault)
        except ClientDisconnect:
            return self._refuse(Refused(400, "cut", "a delivery that broke off"))
        outcome = "ignored" if delivery is None else "accepted"
        self.metrics.deliveries.labels(outcome).inc()
        if delivery is not None:
            self.reconciler.wake(delivery.name)
        return PlainTextResponse(outcome, 202)

    async def health(self, request: Request) -> Response:
        """200 while the reconciler works, once it has tried to look at the registry."""
        fault = self.reconciler.fault()
        return PlainTextResponse(fault or "ok", 503 if fault else 200)

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus's text."""
        text = await run_in_threadpool(self.metrics.render, self.reconciler)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _body(self, request: Request) -> bytes:
        """The body; what is larger than allowed is refused before it is read."""
        most = self.config.max_body_kb * 1024
        large = Refused(
            413, "size", f"a delivery larger than infra.relay.max_body_kb, {self.config.max_body_kb} kB"
        )
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            raise large
        pieces: list[bytes] = []
        left = most
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    left -= len(piece)
                    if left < 0:
                        raise large
                    pieces.append(piece)
        except TimeoutError:
            raise Refused(
                408, "slow", f"a delivery that took longer than {BODY_SECONDS:.0f} s to arrive"
            ) from None
        return b"".join(pieces)

    def _refuse(self, fault: Refused) -> Response:
        self.metrics.deliveries.labels("refused").inc()
        self.metrics.refused.labels(fault.reason).inc()
        now = time.monotonic()
        # Anyone can send what is refused, so the log names each reason only now and then; the metrics count.
        if now - self._logged.get(fault.reason, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._logged[fault.reason] = now
            log.warning("refused (%d) %s", fault.status, fault.sentence)
        again = {"Retry-After": "1"} if fault.status == 429 else {}
        return PlainTextResponse(fault.sentence, fault.status, headers=again)


def register_webhook(tracking_uri: str, url: str, secret: str) -> str:
    """Id of the one webhook called resprout-relay, made or brought up to date.

    Raises:
        BadInput: MLflow does not take the address.
        StageFailed: MLflow does not answer.
    """
    import requests
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    settings: dict[str, Any] = {
        "name": HOOK_NAME,
        "url": url,
        "events": list(EVENTS),
        "secret": secret,
        "status": "ACTIVE",
    }
    try:
        hooks = pages(lambda token: client.list_webhooks(page_token=token))
        found = [hook for hook in hooks if hook.name == HOOK_NAME]
        for more in found[1:]:
            client.delete_webhook(more.webhook_id)
        if found:
            return str(client.update_webhook(found[0].webhook_id, **settings).webhook_id)
        return str(client.create_webhook(**settings).webhook_id)
    except (MlflowException, requests.RequestException) as error:
        text = one_line(error, None).replace(secret, "…")[:300]
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise BadInput(
                f"MLflow takes no webhook to {without_credentials(url)} ({text}); give https:// with a "
                "public address, or have the server allow others by MLFLOW_WEBHOOK_ALLOWED_SCHEMES and "
                "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"
            ) from None
        raise StageFailed(f"MLflow at {without_credentials(tracking_uri)} took no webhook: {text}") from None
