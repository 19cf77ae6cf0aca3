"""One part of the stack: what the supervisor starts, and how it becomes the server.

Run as a module with the path of a part's JSON file, it ends what an earlier life of the part has left behind
(a server's child that outlived a kill -9 holds the port), waits for the servers that the part needs, and
becomes the part's command. A worker marks its dead runs first. Secrets come through the environment only, and
a part keeps only its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from resprout.infra.stack.ask import answers
from resprout.infra.stack.leftovers import PART, STACK, end, of_part
from resprout.infra.stack.runs import mark_dead

WORKER = "worker"


@dataclass(frozen=True)
class Part:
    """What one part is; everything here is written to its JSON file."""

    name: str
    title: str
    command: tuple[str, ...]
    environment: dict[str, str]
    health: str
    """Address that answers 200 once the part works; the worker is asked about at the Prefect server's."""
    url: str = ""
    port: int | None = None
    after: tuple[str, ...] = ()
    """Addresses that must answer before the part starts."""
    without: tuple[str, ...] = ()
    """Variables with secrets of other parts."""
    keeps: tuple[str, ...] = ()
    """Variables with its own secrets."""
    pool: str = ""
    """The worker's pool."""

    def text(self) -> str:
        """The part as JSON."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def main(path: Path) -> None:
    """Become the command of the part that `path` describes."""
    part = json.loads(path.read_text())
    if part["name"] != WORKER:
        # Runs that outlived a killed worker go on by themselves; the new worker takes up the next ones.
        end(of_part(os.environ[STACK], part["name"]))
    for url in part["after"]:
        while not answers(url):
            time.sleep(0.2)
    if part["pool"]:
        dead = mark_dead(part["environment"]["PREFECT_API_URL"], part["pool"])
        sys.stdout.write(
            f"runs whose process is gone, marked as Crashed: {', '.join(dead)}\n" if dead else ""
        )
        sys.stdout.flush()
    environment = allowed(os.environ, part["without"], part["keeps"])
    environment.update(part["environment"])
    environment[PART] = part["name"]
    os.execvpe(part["command"][0], part["command"], environment)


def allowed(environment: Mapping[str, str], without: Iterable[str], keeps: Iterable[str]) -> dict[str, str]:
    """What of an environment a part may see: no secret of others, under whatever name the user gave it.

    A run whose config says ${VARIABLE} finds the worker's own secrets under the user's names too.
    """
    secret = {_bare(environment.get(name, "")) for name in without}
    secret -= {_bare(environment.get(name, "")) for name in keeps} | {""}
    kept = set(keeps)
    return {
        name: value
        for name, value in environment.items()
        if name in kept or (name not in without and _bare(value) not in secret)
    }


def _bare(secret: str) -> str:
    """A database's address is handed on with the name of a driver before it."""
    return secret.rpartition("://")[2]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
