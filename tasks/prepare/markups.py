"""What a document may be written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from resprout.tasks.prepare.blocks import Part, text_parts
from resprout.tasks.prepare.html import html_parts
from resprout.tasks.prepare.markdown import markdown_parts

MARKUPS = {"html": html_parts, "markdown": markdown_parts, "text": text_parts}


def parts_of(source: str, markup: str) -> list[Part]:
    """The parts of a document in `html`, `markdown` or plain `text`."""
    return MARKUPS[markup](source)


def parser(_: Any) -> Callable[[Mapping[str, str]], list[dict[str, Any]]]:
    """A function from a document to its parts as plain data, for a child process."""
    return lambda document: [vars(part) for part in parts_of(document["text"], document["markup"])]
