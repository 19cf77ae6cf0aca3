"""Markdown for MLflow's pages: links that stay inside them, and text from outside that stays text.

MLflow shows raw HTML and links in what it takes for Markdown, cleaned of scripts but not of pictures from
elsewhere. So names, sources and licences enter in code spans or escaped. Links begin with #/, which is where
MLflow's pages are under any address of the server, also after it moved.
"""

from __future__ import annotations

import re
from urllib.parse import quote

NOTE = "mlflow.note.content"
"""Tag of a run that MLflow shows as its description."""
MAX_CHARS = 300


def code(text: object) -> str:
    """The text in a code span, on one line, at most 300 characters of it; nothing in it is Markdown."""
    line = _line(text)
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line or ' '}`"


def plain(text: object) -> str:
    """The text with every character escaped that Markdown or HTML takes for its own inside a line."""
    return re.sub(r"([\\`*_\[\]<>&!|#~])", _escaped, _line(text))


def fenced(text: str, language: str = "") -> str:
    """The text as a code block, behind more ticks than any row of them in it."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def link(text: object, page: str) -> str:
    """A link to a page of MLflow."""
    return f"[{plain(text)}]({page})"


def run_page(experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Address of a run's page, or of a file among its artifacts."""
    inside = f"/artifacts/{quote(artifact)}" if artifact else ""
    return f"#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}{inside}"


def model_page(name: str, version: str = "") -> str:
    """Address of a registered model's page, or of a version's."""
    return f"#/models/{quote(name, safe='')}{f'/versions/{quote(version)}' if version else ''}"


def _line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_CHARS else f"{line[: MAX_CHARS - 3]}..."


def _escaped(found: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(found[1], f"\\{found[1]}")
