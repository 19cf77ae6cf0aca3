"""What Prefect shows of a finished run: the table of results, and links to MLflow and to the report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from resprout.configs.result import RunResult
from resprout.infra.tracking import Tracker

logger = logging.getLogger(__name__)

REPORT = "report/report.html"


def announce(name: str, result: RunResult, summary: str, tracker: Tracker) -> None:
    """Make the Prefect artifacts of a run called `name`; a server that does not take them ends no run."""
    key = "".join(char if char.isalnum() else "-" for char in name.lower()).strip("-") or "run"
    _try(create_markdown_artifact, markdown=summary, key=f"{key}-summary", description=f"Report of {name}")
    _try(create_table_artifact, table=rows(result), key=f"{key}-result", description=f"Models of {name}")
    page = tracker.page(result.mlflow_run_id or "")
    if page is not None:
        _try(create_link_artifact, link=page, link_text=f"{name} in MLflow", key=f"{key}-mlflow")
        report = f"{page}/artifacts/{REPORT}"
        _try(create_link_artifact, link=report, link_text=f"Report of {name}", key=f"{key}-report")


def rows(result: RunResult) -> list[dict[str, Any]]:
    """One row for each model, with its size and all metrics."""
    if result.models is None:
        return []
    return [
        {"model": name, "params": one.params, "bytes": one.bytes, **dict(sorted(one.metrics.items()))}
        for name, one in result.models.there().items()
    ]


def _try(make: Callable[..., Any], **given: Any) -> None:
    try:
        make(**given)
    except Exception as error:
        logger.warning("Prefect did not take the artifact %s: %s", given["key"], " ".join(str(error).split()))
