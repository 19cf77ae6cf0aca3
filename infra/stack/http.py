"""HTTP requests to servers on this machine, without their libraries, whose imports take seconds."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

BUSY = 503
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, None)
# A proxy of the machine knows nothing of its loopback interface.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_healthy(url: str, seconds: float = 2.0) -> bool:
    """Whether a server answers 200."""
    try:
        with _OPENER.open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def get(url: str) -> Any:
    """Return the JSON that a server answers; OSError where it does not."""
    return _answer(urllib.request.Request(url))


def post(url: str, body: dict[str, Any]) -> Any:
    """Return the JSON that a server answers to JSON; OSError where it does not."""
    headers = {"Content-Type": "application/json"}
    return _answer(urllib.request.Request(url, json.dumps(body).encode(), headers))


def _answer(ask: urllib.request.Request, seconds: float = 10.0) -> Any:
    for pause in PAUSES_SECONDS:
        try:
            with _OPENER.open(ask, timeout=seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # What Prefect says while something else writes to its SQLite file.
            if error.code != BUSY or pause is None:
                raise
            time.sleep(pause)
    return None
