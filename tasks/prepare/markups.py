"""What a document may be written in."""

from __future__ import annotations

from resprout.tasks.prepare.blocks import Part, text_parts
from resprout.tasks.prepare.html import html_parts
from resprout.tasks.prepare.markdown import markdown_parts

MARKUPS = {"html": html_parts, "markdown": markdown_parts, "text": text_parts}


def parts_of(source: str, markup: str) -> list[Part]:
    """The parts of a document in `html`, `markdown` or plain `text`."""
    return MARKUPS[markup](source)
