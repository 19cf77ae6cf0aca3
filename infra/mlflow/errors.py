"""Errors of MLflow's client as one sentence of the right kind."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from resprout.configs.errors import BadInput, ResproutError, StageFailed, Transient, VerificationFailed
from resprout.configs.infrastructure import one_line

P = ParamSpec("P")
R = TypeVar("R")
KNOCK_SECONDS = 5.0
DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_CANTOPEN", "SQLITE_IOERR")
"""How errors are named of what is no database, as others are of one that is being written."""


def mlflow_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turn a fault of the tracking server, or of the bucket that it keeps files in, into one sentence."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        import requests
        from botocore.exceptions import BotoCoreError, ClientError
        from mlflow.exceptions import MlflowException

        try:
            return method(*args, **kwargs)
        except ResproutError:
            raise
        except (MlflowException, requests.RequestException, BotoCoreError, ClientError, OSError) as error:
            tracker: Any = args[0]
            if _no_access(error):
                raise StageFailed(
                    f"MLflow at {tracker.shown_uri} keeps the files of runs in a bucket that this process "
                    f"cannot use ({one_line(error)}); give infra.store with its credentials, or "
                    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and MLFLOW_S3_ENDPOINT_URL"
                ) from error
            what = one_line(error, 300)
            kind = StageFailed if will_not_pass(error) else Transient
            raise kind(
                f"MLflow at {tracker.shown_uri} failed in {method.__name__}: {what}; what was computed is in "
                "the artifact store, so run the same command again when MLflow answers"
            ) from error

    return call


def legible(method: Callable[P, R]) -> Callable[P, R]:
    """Turn what a row that was edited makes MLflow raise, which has no common type, into one sentence."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except ResproutError:
            raise
        except Exception as error:
            named = " ".join(str(one) for one in args[1:])
            raise VerificationFailed(
                f"what MLflow keeps of {named} cannot be read: {type(error).__name__}: {one_line(error)}"
            ) from error

    return call


@contextmanager
def allowing(*codes: str) -> Iterator[None]:
    """Let a block end where MLflow refuses with one of these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def will_not_pass(error: Exception) -> bool:
    """Whether waiting cannot help: the server refuses, a driver is missing, this machine's disk fails."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.get_http_status_code() < 500
    if isinstance(error, requests.RequestException | ConnectionError | TimeoutError):
        return False
    return isinstance(error, OSError | ImportError) or type(error).__module__.startswith("sqlalchemy")


def _no_access(error: Exception) -> bool:
    """Whether it is a bucket that refuses this process."""
    from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

    status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else 0
    return status in (401, 403) or isinstance(error, NoCredentialsError | PartialCredentialsError)


def knock(uri: str) -> None:
    """Ask a tracking server or database once, without MLflow's own retries; OSError where nothing answers."""
    if not uri.startswith(("http://", "https://")):
        _knock_at_database(uri)
        return
    import requests

    # A certificate that only MLflow's own settings accept is an answer too.
    with suppress(requests.exceptions.SSLError):
        requests.head(uri, timeout=KNOCK_SECONDS, allow_redirects=False)


def require_sqlite(uri: str) -> None:
    """Raise BadInput where what stands in the place of a database in SQLite cannot be read as one."""
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        if not error.sqlite_errorname.startswith(DAMAGED):
            return
        raise BadInput(
            f"{path} is no SQLite database that can be read ({error}); bring back MLflow's database from a "
            "backup, or set infra.mlflow.tracking_uri to another"
        ) from error


def _knock_at_database(uri: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    if uri.startswith("sqlite:"):
        require_sqlite(uri)
        return
    engine = create_engine(uri)
    try:
        engine.connect().close()
    except OperationalError as error:
        raise ConnectionError(one_line(error)) from None
    finally:
        engine.dispose()
