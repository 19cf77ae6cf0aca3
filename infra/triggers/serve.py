"""Run the relay: check its settings at the start, serve webhooks, shut down cleanly."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.network import listen
from resprout.infra.prefect.flow_runs import FlowRuns
from resprout.infra.prefect.server import OLDEST_SERVER, release
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.model_registry import ModelRegistry
from resprout.infra.triggers.reconciler import Reconciler, WatchedRules
from resprout.infra.triggers.state import TriggerState
from resprout.infra.triggers.webhook import Webhook

OLDEST = {"MLflow": (3, 17), "Prefect": OLDEST_SERVER}
"""Servers before these are not known to work."""
GRACE_SECONDS = 10
HEAD_SECONDS = 10.0
"""Within which the request line and headers must be here."""
SWITCH_SECONDS = 0.0005

log = logging.getLogger("resprout.relay")


def rules_path(infra: InfraConfig, given: Path | None = None) -> Path:
    """The rules file that is given or that `infra.relay.rules` names."""
    path = given or (Path(infra.relay.rules) if infra.relay.rules else None)
    if path is None:
        raise BadInput("no rules are given; set infra.relay.rules to a YAML file of rules")
    return path


def prefect_url(infra: InfraConfig) -> str:
    """Address of the Prefect server; BadInput where none is named: a run must outlive the relay."""
    url = infra.prefect.api_url or os.environ.get("PREFECT_API_URL")
    if not url:
        raise BadInput("no Prefect server is named; set infra.prefect.api_url, say http://127.0.0.1:4200/api")
    return url


def serve(infra: InfraConfig, home: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises BadInput where it must not start."""
    if infra.relay.webhook_secret is None or not infra.relay.webhook_secret.get_secret_value():
        raise BadInput(
            "infra.relay.webhook_secret is not set, so anyone could start runs; give it the secret of the "
            "webhook in MLflow, in YAML as ${VARIABLE}"
        )
    rules, runs = WatchedRules(rules_path(infra)), FlowRuns(infra.prefect, prefect_url(infra))
    registry = ModelRegistry(infra.mlflow, home)
    check_servers(registry, runs)
    socket = listen(infra.relay.host, infra.relay.port, "infra.relay.port")
    state, store = TriggerState.open(infra.relay, home), ArtifactStore.from_config(infra.store, home)
    reconciler = Reconciler(rules, state, registry, runs, store, infra.relay.poll_seconds)
    # The reconciler shares the interpreter with the loop that answers; this is how long it may keep it.
    sys.setswitchinterval(SWITCH_SECONDS)
    reconciler.start()
    log.info("the relay listens on %s:%d with %d rules", infra.relay.host, infra.relay.port, len(rules.rules))
    try:
        asyncio.run(_serve_until_signal(Webhook(infra.relay, reconciler), socket))
    finally:
        reconciler.stop()
        state.close()
    log.info("the relay has stopped; what it has not started is started when it is there again")


def check_servers(registry: ModelRegistry, runs: FlowRuns) -> None:
    """BadInput where a server is too old; for one that does not answer yet the relay waits."""
    for name, ask in (("MLflow", registry.server_version), ("Prefect", runs.server_version)):
        try:
            given = ask()
        except Transient as fault:
            log.warning("%s; the relay starts, and waits for it", fault)
            continue
        if release(given) < OLDEST[name]:
            oldest = ".".join(map(str, OLDEST[name]))
            raise BadInput(f"the {name} server has version {given[:20]}; the relay needs {oldest} or later")


class _PromptProtocol(H11Protocol):
    """HTTP on one connection, closed where the head of a request takes too long.

    uvicorn ends connections that are idle between requests, and the webhook those whose body is slow.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._end_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Server(uvicorn.Server):
    """A server that a signal ends with exit status 0: uvicorn's own handler raises the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve_until_signal(webhook: Webhook, socket: object) -> None:
    config = uvicorn.Config(
        webhook.app(),
        http=_PromptProtocol,
        log_config=None,
        access_log=False,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[socket])  # type: ignore[list-item]
