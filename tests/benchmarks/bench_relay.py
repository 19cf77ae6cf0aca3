"""The relay under load: signed deliveries at a steady rate, over HTTP, into the outbox of a real process.

    PYTHONPATH=tests python tests/benchmarks/bench_relay.py [--seconds 60] [--rate 200]

Deliveries leave at their times whether or not earlier ones were answered, and each is timed from when it
should have left. One in twenty is for a rule, so that the hand-over asks the registry beside. Bound: none
lost, p99 under 100 ms; exits 1 where that does not hold.
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

from relaying import event, relay_process, signed, write_rules
from resprout.configs.schema import MlflowConfig, RelayConfig
from resprout.infra.relay.outbox import Outbox
from resprout.infra.tracking import Tracker

BOUND_SECONDS = 0.1
CONNECTIONS = 32


async def load(url: str, rate: float, seconds: float) -> list[float]:
    """Seconds from when each delivery should have left to its answer; all must be 200."""
    address = urlsplit(url)
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(address.hostname, address.port))
    took: list[float] = []
    began = time.perf_counter() + 0.5

    async def deliver(index: int) -> None:
        left = began + index / rate
        await asyncio.sleep(max(0.0, left - time.perf_counter()))
        name = "chat-7b" if index % 20 == 0 else f"model-{index % 50}"
        body = event(name, index + 1, description="x" * 200)
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


def kept(home: Path) -> int:
    """Rows in the outbox."""
    outbox = Outbox.open(RelayConfig(), home)
    counts, _ = outbox.counts()
    outbox.close()
    return sum(counts.values())


def main() -> int:
    given = argparse.ArgumentParser()
    given.add_argument("--seconds", type=float, default=60.0)
    given.add_argument("--rate", type=float, default=200.0)
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, rules = Path(folder) / "home", write_rules(Path(folder) / "rules")
        # The tables of a new registry are made for seconds, and once.
        Tracker(MlflowConfig(), home).connect()
        with relay_process(home, rules, PREFECT__API_URL="http://127.0.0.1:9/api") as relay:
            took = sorted(asyncio.run(load(relay.url, options.rate, options.seconds)))
            status = relay.end(signal.SIGTERM)
        lost = len(took) - kept(home)
    p99 = took[int(len(took) * 0.99)]
    print(
        f"relay: {len(took)} deliveries at {options.rate:.0f}/s, {lost} lost, p50 "
        f"{statistics.median(took) * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, worst {took[-1] * 1e3:.0f} ms "
        f"(bound: none, p99 {BOUND_SECONDS * 1e3:.0f} ms)"
    )
    return 1 if lost or status or p99 > BOUND_SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
