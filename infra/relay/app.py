"""The relay's HTTP side: take a delivery, prove it, keep it, answer. Nothing else comes before the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from resprout.configs.infrastructure import RelayConfig
from resprout.infra.relay.delivery import Refused, prove, read
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import Outbox
from resprout.infra.relay.writer import Writer

PATH = "/webhooks/mlflow"
BODY_SECONDS = 10.0
QUIET_SECONDS = 10.0

log = logging.getLogger("resprout.relay")


class Bucket:
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


class Door:
    """What one delivery passes on its way into the outbox."""

    def __init__(
        self,
        config: RelayConfig,
        writer: Writer,
        outbox: Outbox,
        metrics: Metrics,
        wake: Callable[[], None],
        alive: Callable[[], str | None] = lambda: None,
    ) -> None:
        if config.webhook_secret is None:
            raise ValueError("a relay without a secret would take anyone's word")
        self.config, self.writer, self.outbox, self.metrics = config, writer, outbox, metrics
        self.wake, self.alive = wake, alive
        self.bucket = Bucket(config.rate_per_second)
        self._secret = config.webhook_secret.get_secret_value().encode()
        self._said: dict[str, float] = {}

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
        """Answer 200 once the delivery is committed, or was before."""
        try:
            body = await self._body(request)
            window = self.config.window_seconds
            identity = prove(request.headers, body, self._secret, time.time(), window)
            # Only what is proven counts, or anyone's forgeries would keep MLflow out.
            if not self.bucket.take():
                raise Refused(429, "rate", "more deliveries than infra.relay.rate_per_second")
            delivery = read(identity, body)
            new = delivery is not None and await self.writer.put(delivery)
        except Refused as no:
            return self._refuse(no)
        except ClientDisconnect:
            return self._refuse(Refused(400, "cut", "a delivery that broke off"))
        outcome = "ignored" if delivery is None else "accepted" if new else "duplicate"
        self.metrics.deliveries.labels(outcome).inc()
        if new:
            self.wake()
        return PlainTextResponse(outcome)

    async def health(self, request: Request) -> Response:
        """200 while all threads of the relay work."""
        dead = self.alive()
        return PlainTextResponse(f"{dead} has stopped" if dead else "ok", 503 if dead else 200)

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus's text."""
        text = await run_in_threadpool(self.metrics.render, self.outbox)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _body(self, request: Request) -> bytes:
        """The body; what is larger than allowed is refused before it is read."""
        most = self.config.max_body_kb * 1024
        large = Refused(
            413, "size", f"a delivery larger than infra.relay.max_body_kb, {self.config.max_body_kb} kB"
        )
        told = request.headers.get("content-length", "0")
        if not told.isdigit() or int(told) > most:
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

    def _refuse(self, no: Refused) -> Response:
        self.metrics.deliveries.labels("refused").inc()
        self.metrics.refused.labels(no.reason).inc()
        now = time.monotonic()
        # Anyone can send what is refused, so each reason is told of only now and then; the metrics count.
        if now - self._said.get(no.reason, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._said[no.reason] = now
            log.warning("refused (%d) %s", no.status, no.sentence)
        again = {"Retry-After": "1"} if no.status in (429, 503) else {}
        return PlainTextResponse(no.sentence, no.status, headers=again)
