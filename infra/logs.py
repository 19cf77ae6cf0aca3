"""Log lines of deployed runs, relay and stack: who speaks and in which run, as text or as JSON objects."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from resprout.configs.infrastructure import without_credentials
from resprout.infra.identity import library_version

NAME = "resprout"
ERROR = re.compile(r"^\S*(Error|Exception)\b|\b(error|ERROR):")
TEXT = "%(asctime)s %(levelname)s %(name)s%(where)s: %(message)s"

_fields: ContextVar[Mapping[str, str]] = ContextVar("log_fields", default=MappingProxyType({}))


@contextmanager
def fields(**values: str) -> Iterator[None]:
    """Add `values`, such as the id of a run, to every line that is logged inside the block."""
    token = _fields.set({**_fields.get(), **values})
    try:
        yield
    finally:
        _fields.reset(token)


def known() -> Mapping[str, str]:
    """Fields of log lines of this thread, to be handed to a thread that begins without them."""
    return _fields.get()


def configure(form: str, stream: TextIO | None = None) -> None:
    """Write what resprout logs from INFO on to `stream` (stderr), each line as `form` says: text or json."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_add_fields)
    if form == "json":
        from pythonjsonlogger.core import RESERVED_ATTRS
        from pythonjsonlogger.json import JsonFormatter

        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                rename_fields={"levelname": "level", "name": "logger"},
                static_fields={"resprout": library_version("resprout")},
                reserved_attrs=[*RESERVED_ATTRS, "where"],
                timestamp="time",
            )
        )
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logger = logging.getLogger(NAME)
    for old in [one for one in logger.handlers if _add_fields in one.filters]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def also_to_prefect() -> None:
    """Send the lines of a run to its page on the Prefect server too, where its log goes there at all."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import get_current_settings

    logger = logging.getLogger(NAME)
    if not get_current_settings().logging.to_api.enabled:
        return
    if any(isinstance(one, APILogHandler) for one in logger.handlers):
        return
    handler = APILogHandler()
    handler.addFilter(_of_a_flow_run)
    logger.addHandler(handler)


def _of_a_flow_run(record: logging.LogRecord) -> bool:
    """Lines of other threads, which know of no run, stay here."""
    flow_run = _fields.get().get("flow_run")
    if flow_run is not None:
        record.flow_run_id = flow_run
    return flow_run is not None


def _add_fields(record: logging.LogRecord) -> bool:
    known = _fields.get()
    record.__dict__.update(known)
    record.where = "".join(f" {name}={value}" for name, value in known.items())
    return True


def last_line(path: Path) -> str:
    """Return the last line of a log that names an error, else the last, without credentials; '' for none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    words = [line.strip() for line in lines if any(letter.isalnum() for letter in line)]
    errors = [line for line in words[-40:] if ERROR.search(line)]
    return without_credentials((errors or words)[-1])[:300] if words else ""
