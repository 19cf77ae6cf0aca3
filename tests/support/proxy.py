"""A proxy before a real HTTP server that breaks what goes through it."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

OWN_HEADERS = ("transfer-encoding", "connection", "content-length", "date", "server")

Choice = Callable[[str, str], str | None]
"""The fault for a request's method and path: see `Proxy.FAULTS`; None lets it through."""


@dataclass
class Proxy:
    """`choose` names the fault of each request; `seen` lists those that were done, as (method, path, fault).

    500 and 503 answer with that status; `reset` closes the connection before, and `lost` after the server
    has done what was asked; `slow` answers after `delay_seconds`; `cut` closes it after half of the body;
    `wrong` flips one bit somewhere in the body.
    """

    url: str
    choose: Choice = lambda method, path: None
    delay_seconds: float = 3.0
    draw: random.Random = field(default_factory=lambda: random.Random(17))
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    FAULTS = ("500", "503", "reset", "lost", "slow", "cut", "wrong")


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy on a free port of loopback before the server at `target`."""
    address = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            assert "chunked" not in self.headers.get("Transfer-Encoding", ""), (
                "only bodies of a stated length"
            )
            fault = through.choose(self.command, self.path)
            if fault is not None:
                through.seen.append((self.command, self.path, fault))
            if fault == "reset":
                self.drop()
            elif fault in ("500", "503"):
                self.refuse(int(fault))
            else:
                self.pass_on(body, fault)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def drop(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def refuse(self, status: int) -> None:
            code = "SlowDown" if status == 503 else "InternalError"
            text = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def pass_on(self, body: bytes, fault: str | None) -> None:
            server = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            # The Host header is signed, so it goes on as it came.
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            answer = server.getresponse()
            data = answer.read()
            server.close()
            if fault == "lost":
                self.drop()
                return
            if fault == "slow":
                time.sleep(through.delay_seconds)
            if fault == "wrong" and data:
                at = through.draw.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "transfer-encoding",
                    "connection",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.drop()
            else:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        through = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield through
        finally:
            server.shutdown()
            thread.join()
