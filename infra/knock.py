"""One look at whether MLflow is there, without its own retries, which outlast a user's patience."""

from __future__ import annotations

from contextlib import suppress

from resprout.infra.answers import one_line

KNOCK_SECONDS = 5.0


def knock(uri: str) -> None:
    """Return where a tracking server or its database answers anything; an OSError says why it does not."""
    if not uri.startswith(("http://", "https://")):
        _knock_at_database(uri)
        return
    import requests

    # A certificate that only MLflow's own settings accept is an answer too.
    with suppress(requests.exceptions.SSLError):
        requests.head(uri, timeout=KNOCK_SECONDS, allow_redirects=False)


def _knock_at_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    if uri.startswith("sqlite:"):
        return
    engine = create_engine(uri)
    try:
        engine.connect().close()
    except OperationalError as error:
        raise ConnectionError(one_line(error, 200)) from None
    finally:
        engine.dispose()
