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
    environment = {name: value for name, value in os.environ.items() if name not in part["without"]}
    environment.update(part["environment"])
    environment[PART] = part["name"]
    os.execvpe(part["command"][0], part["command"], environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
