"""The relay under load: signed deliveries at a steady rate, over HTTP, to a real process that looks beside.

    PYTHONPATH=tests/support python tests/benchmarks/bench_relay.py [--seconds 60] [--rate 200]

Deliveries leave at their times whether or not earlier ones were answered, and each is timed from when it
should have left. They are about 15 versions of five models, which are registered meanwhile and each start a
run, as far as a Prefect server goes that is not there. Bound: every version waits for its run in the end, p99
under 100 ms; exits 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from relaying import add_version, event, relay_process, signed, until, write_rules
from resprout.configs.infrastructure import MlflowConfig, RelayConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.triggers.state import WAITING, TriggerState

BOUND_SECONDS = 0.1
MODELS, VERSIONS = 5, 15
CONNECTIONS = 32


async def load(url: str, rate: float, seconds: float) -> list[float]:
    """Seconds from when each delivery should have left to its answer; all must be 202."""
    address = urlsplit(url)
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(address.hostname, address.port))
    took: list[float] = []
    began = time.perf_counter() + 0.5

    async def deliver(index: int) -> None:
        left = began + index / rate
        await asyncio.sleep(max(0.0, left - time.perf_counter()))
        body = event(f"chat-{index % MODELS}", index % VERSIONS // MODELS + 1, description="x" * 200)
        headers = {**signed(body), "Host": str(address.netloc), "Content-Length": str(len(body))}
        lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        reader, writer = await idle.get()
        writer.write(f"POST /webhooks/mlflow HTTP/1.1\r\n{lines}\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        said = await reader.readexactly(int(length.rpartition(b":")[2]))
        took.append(time.perf_counter() - left)
        idle.put_nowait((reader, writer))
        if said != b"accepted":
            raise RuntimeError(f"a delivery was answered {head[:40]!r} {said!r}")

    await asyncio.gather(*(deliver(index) for index in range(int(rate * seconds))))
    return took


def waiting(home: Path) -> int:
    """Versions that wait for Prefect."""
    state = TriggerState.open(RelayConfig(), home)
    count = state.counts()[WAITING]
    state.close()
    return count


def main() -> int:
    given = argparse.ArgumentParser()
    given.add_argument("--seconds", type=float, default=60.0)
    given.add_argument("--rate", type=float, default=200.0)
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, rules = Path(folder) / "home", write_rules(Path(folder) / "rules")
        # The tables of a new registry are made for seconds, and once.
        tracker = Tracker(MlflowConfig(), home)
        tracker.connect()
        with relay_process(home, rules, PREFECT__API_URL="http://127.0.0.1:9/api") as relay:
            for _ in range(VERSIONS // MODELS):
                for model in range(MODELS):
                    add_version(tracker.client, f"chat-{model}")
            took = sorted(asyncio.run(load(relay.url, options.rate, options.seconds)))
            until(lambda: waiting(home) == VERSIONS, 30)
            status = relay.end(signal.SIGTERM)
    p99 = took[int(len(took) * 0.99)]
    print(
        f"relay: {len(took)} deliveries at {options.rate:.0f}/s about {VERSIONS} versions, p50 "
        f"{statistics.median(took) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, worst {took[-1] * 1e3:.0f} ms "
        f"(bound: p99 {BOUND_SECONDS * 1e3:.0f} ms)"
    )
    return 1 if status or p99 > BOUND_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
