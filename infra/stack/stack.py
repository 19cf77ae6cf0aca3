"""Start, look at and stop the one-machine stack."""

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

from filelock import FileLock, Timeout

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import InfraConfig
from resprout.infra.identity import library_version
from resprout.infra.ports import port_holder
from resprout.infra.stack.ask import answers, post
from resprout.infra.stack.databases import check_databases
from resprout.infra.stack.leftovers import end, mark, of_stack
from resprout.infra.stack.part import WORKER, Part
from resprout.infra.stack.parts import build
from resprout.infra.stack.supervisor import Supervisor, Told, last_line

HEALTHY_WITHIN_SECONDS = 150.0
FAILED_TWICE = 2
SILENT_SECONDS = 90.0
"""The worker tells the server every 30 seconds that it is there."""
ORDER_DOWN = (WORKER, "relay", "mlflow", "prefect")
"""The worker first: its runs tell the servers that they end."""
STOPPED = Told("STOPPED", 0, 0.0, 0.0)


@dataclass(frozen=True)
class PartStatus:
    """How one part is."""

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
        self.parts, self._secrets = build(infra, home, relay)

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
            if settled and all(part.healthy for part in self.status()):
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

    def status(self) -> list[PartStatus]:
        """Every part that these settings ask for, as it is now."""
        told = self.supervisor.told()
        return [self._status(part, told.get(part.name, STOPPED)) for part in self.parts]

    def _start(self) -> None:
        identity = self._identity()
        running = self.supervisor.identity()
        known = set(self.supervisor.told())
        mine = {process.pid for process, _ in of_stack(mark(self.home))}
        check_databases(self.infra.stack)
        for part in self.parts:
            self._check_port(part, mine)
        if running == identity:
            self.supervisor.write(self.parts, identity)
            self.supervisor.reload()
            return
        if running is not None or known or mine:
            # Secrets are in the supervisor's own environment, so that other ones need another supervisor.
            _stop_all(self.supervisor)
        self.supervisor.write(self.parts, identity)
        self.supervisor.start(self._secrets)

    def _check_port(self, part: Part, mine: set[int]) -> None:
        holder = port_holder(part.port) if part.port is not None else None
        if holder is not None and holder.pid not in mine:
            raise BadInput(
                f"port {part.port} of the {part.title} is in use by {holder}; stop that, or set another port "
                f"in infra.{'relay' if part.name == 'relay' else 'stack'}"
            )

    def _wait(self) -> None:
        """Return once all parts are healthy; StageFailed with the last words of one that is not."""
        until = time.monotonic() + HEALTHY_WITHIN_SECONDS
        ends: dict[str, set[float]] = {part.name: set() for part in self.parts}
        while True:
            told = self.supervisor.told()
            waiting = []
            for part in self.parts:
                now = told.get(part.name, STOPPED)
                ends[part.name] |= {now.ended} - {0.0}
                if not self._status(part, now).healthy:
                    waiting.append(part)
            if not waiting:
                return
            for part in waiting:
                if len(ends[part.name]) > FAILED_TWICE or time.monotonic() > until:
                    raise StageFailed(self._sentence(part, told.get(part.name, STOPPED)))
            time.sleep(0.25)

    def _sentence(self, part: Part, told: Told) -> str:
        log = self.supervisor.log(part.name)
        state = told.state.lower()
        return (
            f"the {part.title} does not get healthy ({state}): {last_line(log) or 'it says nothing'}; see "
            f"{log}, and run `resprout up` again, or `resprout up --down` to stop the rest"
        )

    def _status(self, part: Part, told: Told) -> PartStatus:
        runs = told.state in ("RUNNING", "STARTING")
        healthy = runs and (self._worker_polls(part, told) if part.name == WORKER else answers(part.health))
        seconds = round(time.time() - told.began, 1) if runs else 0.0
        return PartStatus(part.name, part.title, healthy, told.state.lower(), told.pid, seconds, part.url)

    def _worker_polls(self, part: Part, told: Told) -> bool:
        """Whether the server has heard from the worker since it started, and not too long ago."""
        try:
            workers = post(part.health, {})
        except (OSError, ValueError):
            return False
        beats = [one["last_heartbeat_time"] for one in workers if one["name"] == "stack"]
        since = max(told.began, time.time() - SILENT_SECONDS)
        return any(datetime.fromisoformat(beat).timestamp() >= since for beat in beats)

    def _identity(self) -> str:
        """Changes with secrets and with what is installed, and says nothing of either."""
        versions = {name: library_version(name) for name in ("resprout", "prefect", "mlflow")}
        text = json.dumps([self._secrets, versions], sort_keys=True)
        key = self._secrets["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"]
        return hmac.new(key.encode(), text.encode(), "sha256").hexdigest()

    def _digest(self) -> str:
        text = "".join(part.text() for part in self.parts) + self._identity()
        return hashlib.sha256(text.encode()).hexdigest()


def down(home: Path) -> bool:
    """Stop everything of the stack of this data folder in order; False where nothing ran."""
    if not (home / "stack").is_dir():
        return False
    with _alone(home):
        return _stop_all(Supervisor(home))


def _stop_all(supervisor: Supervisor) -> bool:
    told = supervisor.told()
    supervisor.shut_down([name for name in ORDER_DOWN if name in told])
    left = [process for process, _ in of_stack(mark(supervisor.home))]
    end(left)
    return bool(told or left)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    try:
        with FileLock(str(home / "stack" / "lock"), timeout=0):
            yield
    except Timeout:
        raise BadInput(
            f"another `resprout up` is at work on {home}; wait for it to end, then try again"
        ) from None
