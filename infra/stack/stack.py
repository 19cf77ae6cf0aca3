"""The one-machine stack: start it, show its state, stop it."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.identity import library_version
from resprout.infra.logs import last_line
from resprout.infra.network import Holder, is_healthy, port_holder, post
from resprout.infra.prefect.auth import CLIENT
from resprout.infra.stack.launch import WORKER, stack_mark, stack_processes, terminate
from resprout.infra.stack.services import PORTS, Service, build_services, check_databases, variable
from resprout.infra.stack.supervisor import ProcessState, Supervisor
from resprout.infra.store.filesystem import try_exclusive_lock

HEALTHY_WITHIN_SECONDS = 150.0
STOPPED_WITHIN_SECONDS = 90.0
FAILED_TWICE = 2
SILENT_SECONDS = 90.0
"""The worker tells the server every 30 seconds that it is there."""
ORDER_DOWN = (WORKER, "relay", "mlflow", "prefect")
"""The worker first: its runs tell the servers that they end."""
STOPPED = ProcessState("STOPPED", 0, 0.0, 0.0)


@dataclass(frozen=True)
class ServiceStatus:
    """Health and state of one service."""

    name: str
    title: str
    healthy: bool
    state: str
    pid: int
    seconds: float
    """Since it started."""
    url: str


class Stack:
    """The stack of one data folder; `relay` is the command of the webhook relay."""

    def __init__(self, infra: InfraConfig, home: Path, relay: tuple[str, ...]) -> None:
        self.infra = infra
        self.home = home
        self.supervisor = Supervisor(home)
        self.services, self._secrets = build_services(infra, home, relay)

    def up(self, settle: Callable[[], None]) -> bool:
        """Bring every part to health; False where all were already.

        `settle` is called with all servers healthy, unless it went through before with the same settings.

        Raises:
            BadInput: a port is taken, or a database cannot be used; nothing was changed.
            StageFailed: a part does not get healthy; the sentence holds its last words.
        """
        with _alone(self.home):
            wanted, done = self._digest(), self.home / "stack" / "settled"
            settled = done.exists() and done.read_text() == wanted
            if settled and all(service.healthy for service in self.status()):
                return False
            done.unlink(missing_ok=True)
            with ExitStack() as until_healthy:
                if not (self.home / "mlflow.db").exists():
                    # Two processes at a new SQLite file break each other's migrations; runs lock it too.
                    until_healthy.enter_context(FileLock(str(self.home / "mlflow.lock"), timeout=120))
                self._start()
                self._wait()
            settle()
            done.write_text(wanted)
            return True

    def status(self) -> list[ServiceStatus]:
        """Every part that these settings ask for, as it is now."""
        states = self.supervisor.states()
        return [self._status(service, states.get(service.name, STOPPED)) for service in self.services]

    def _start(self) -> None:
        identity = self._identity()
        running = self.supervisor.identity()
        known = set(self.supervisor.states())
        check_databases(self.infra.stack)
        for service, holder in self.strangers():
            key = PORTS[service.name]
            raise BadInput(
                f"port {service.port} of the {service.title} is in use by {holder}; stop that, or set "
                f"{key} to another port, in the settings or as {variable(key)}"
            )
        if running == identity:
            self.supervisor.write(self.services, identity)
            self.supervisor.reload()
            return
        if running is not None or known or any(stack_processes(stack_mark(self.home))):
            # Secrets are in the supervisor's own environment, so that other ones need another supervisor.
            _stop_all(self.supervisor)
        self.supervisor.write(self.services, identity)
        self.supervisor.start(self._secrets)

    def strangers(self) -> Iterator[tuple[Service, Holder]]:
        """Yield the services whose port a process holds that is not of this stack."""
        mine = {process.pid for process, _ in stack_processes(stack_mark(self.home))}
        for service in self.services:
            holder = port_holder(service.port) if service.port is not None else None
            if holder is not None and holder.pid not in mine:
                yield service, holder

    def _wait(self) -> None:
        """Return once all parts are healthy; StageFailed with the last words of one that is not."""
        until = time.monotonic() + HEALTHY_WITHIN_SECONDS
        ends: dict[str, set[float]] = {service.name: set() for service in self.services}
        while True:
            states = self.supervisor.states()
            waiting = []
            for service in self.services:
                now = states.get(service.name, STOPPED)
                ends[service.name] |= {now.ended} - {0.0}
                if not self._status(service, now).healthy:
                    waiting.append(service)
            if not waiting:
                return
            for service in waiting:
                if len(ends[service.name]) > FAILED_TWICE or time.monotonic() > until:
                    raise StageFailed(self._sentence(service, states.get(service.name, STOPPED)))
            time.sleep(0.25)

    def _sentence(self, service: Service, now: ProcessState) -> str:
        log = self.supervisor.log(service.name)
        state = now.state.lower()
        return (
            f"the {service.title} does not get healthy ({state}): {last_line(log) or 'it says nothing'}; see "
            f"{log}, and run `resprout up` again, or `resprout up --down` to stop the rest"
        )

    def _status(self, service: Service, now: ProcessState) -> ServiceStatus:
        runs = now.state in ("RUNNING", "STARTING")
        healthy = runs and (
            self._worker_polls(service, now) if service.name == WORKER else is_healthy(service.health)
        )
        seconds = round(time.time() - now.began, 1) if runs else 0.0
        return ServiceStatus(
            service.name, service.title, healthy, now.state.lower(), now.pid, seconds, service.url
        )

    def _worker_polls(self, service: Service, now: ProcessState) -> bool:
        """Whether the server has heard from the worker since it started, and not too long ago."""
        try:
            workers = post(service.health, {}, self._secrets[CLIENT])
        except (OSError, ValueError):
            return False
        beats = [one["last_heartbeat_time"] for one in workers if one["name"] == "stack"]
        since = max(now.began, time.time() - SILENT_SECONDS)
        return any(datetime.fromisoformat(beat).timestamp() >= since for beat in beats)

    def _identity(self) -> str:
        """Changes with secrets and with what is installed, and says nothing of either."""
        versions = {name: library_version(name) for name in ("resprout", "prefect", "mlflow")}
        text = json.dumps([self._secrets, versions], sort_keys=True)
        key = self._secrets["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]
        return hmac.new(key.encode(), text.encode(), "sha256").hexdigest()

    def _digest(self) -> str:
        text = "".join(service.text() for service in self.services) + self._identity()
        return hashlib.sha256(text.encode()).hexdigest()


def down(home: Path) -> bool:
    """Stop everything of the stack of this data folder in order; False where nothing ran."""
    if not (home / "stack").is_dir():
        return False
    with _alone(home):
        return _stop_all(Supervisor(home))


def _stop_all(supervisor: Supervisor) -> bool:
    states = supervisor.states()
    supervisor.shut_down([name for name in ORDER_DOWN if name in states])
    mark, found, until = stack_mark(supervisor.home), bool(states), time.monotonic() + STOPPED_WITHIN_SECONDS
    # A supervisor that did not answer yet goes on starting services until it is gone, so it goes first.
    while left := list(stack_processes(mark)):
        found = True
        if time.monotonic() > until:
            pids = ", ".join(str(process.pid) for process, _ in left)
            raise StageFailed(
                f"processes of the stack of {supervisor.home} do not end ({pids}); end them, and run "
                "`resprout up --down` again"
            )
        terminate([process for process, service in left if not service] or [process for process, _ in left])
    return found


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    with try_exclusive_lock(home / "stack" / "lock") as free:
        if not free:
            raise BadInput(f"another `resprout up` is at work on {home}; wait for it to end, then try again")
        yield
