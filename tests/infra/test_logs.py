"""Log lines: which run speaks, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from resprout.infra import logs


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("resprout")
    before = found.handlers[:], found.level, found.propagate
    yield found
    found.handlers[:], found.propagate = before[0], before[2]
    found.setLevel(before[1])


def test_a_json_line_holds_the_run_and_what_the_caller_adds() -> None:
    out = io.StringIO()
    logs.configure("json", out)
    with logs.fields(flow_run="f-1"), logs.fields(mlflow_run="m-2"):
        logging.getLogger("resprout.flows.x").info(
            "%s: done", "plan", extra={"stage": "plan", "seconds": 1.5}
        )
    logging.getLogger("resprout.flows.x").warning("after")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["message"] == "plan: done"
    assert (first["level"], first["logger"]) == ("INFO", "resprout.flows.x")
    assert (first["flow_run"], first["mlflow_run"], first["stage"], first["seconds"]) == (
        "f-1", "m-2", "plan", 1.5,
    )  # fmt: skip
    assert first["time"].startswith("20")
    assert "flow_run" not in second
    assert "where" not in second


def test_an_error_with_its_traceback_stays_one_json_line() -> None:
    out = io.StringIO()
    logs.configure("json", out)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("resprout.x").exception("it broke")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: first\nsecond" in json.loads(line)["exc_info"]


def test_a_text_line_names_the_run_and_configuring_again_writes_nothing_twice() -> None:
    out = io.StringIO()
    logs.configure("text", io.StringIO())
    logs.configure("text", out)
    with logs.fields(run="tiny"):
        logging.getLogger("resprout.x").info("hello")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("INFO resprout.x run=tiny: hello")
