"""A Prefect server that answers to its own names, to its own pages, and to who knows its auth string.

Prefect's own `prefect server start` answers to any Host header, which lets a page that rebinds its name to
127.0.0.1 pass for one of the server's, and by default to pages of any origin.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resprout.infra.imports import without_collector
from resprout.infra.prefect.auth import LOOPBACK, SERVER

if TYPE_CHECKING:
    from starlette.middleware.trustedhost import TrustedHostMiddleware

ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
PAGES = "PREFECT_SERVER_UI_API_URL"
"""Where Prefect's pages look for the API: its host is one of the server's names."""


def application(port: int, names: Sequence[str] = ()) -> TrustedHostMiddleware:
    """Return the server as an ASGI application; called before Prefect, which reads variables, is imported.

    Args:
        port: Where it will listen.
        names: Host names that it has beside those of the loopback interface.
    """
    if not os.environ.get(SERVER):
        raise SystemExit(f"{SERVER} is not set, so anyone could start runs; set it to user:password")
    hosts = [*LOOPBACK, *names]
    origins = [f"http://{host}:{port}" for host in hosts]
    pages = urlsplit(os.environ.get(PAGES, ""))
    if pages.hostname:
        hosts.append(pages.hostname)
        origins.append(f"{pages.scheme}://{pages.netloc}")
    os.environ.setdefault(ORIGINS, ",".join(dict.fromkeys(origins)))
    with without_collector():
        from prefect.server.api.server import create_app
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    return TrustedHostMiddleware(create_app(final=True), allowed_hosts=hosts, www_redirect=False)


def main() -> None:
    """Serve until a signal."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Start a Prefect server that is not open to anyone.")
    parser.add_argument("--host", default=LOOPBACK[0], help="address to listen on")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--name", action="append", default=[], help="a host name of it, beside loopback's")
    given = parser.parse_args()
    uvicorn.run(
        application(given.port, given.name),
        host=given.host,
        port=given.port,
        log_level="warning",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
