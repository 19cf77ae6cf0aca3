"""Blocks of Markdown, by markdown-it-py, as they stand in the source."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resprout.tasks.prepare.blocks import Kind, Part

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

KINDS: dict[str, Kind] = {"fence": "code", "code_block": "code", "table": "table", "paragraph": "paragraph"}
WITHIN: dict[str, Kind] = {"list_item": "item", "blockquote": "quote"}
"""Kind of a paragraph by the block that contains it."""
_FRONT_MATTER = re.compile(
    r"(---|\+\+\+)[ \t]*(?:\r\n?|\n)(?=[\w\"'-]+[ \t]*[:=]|[#\[])"
    r"(?:[^\r\n]*(?:\r\n|\r(?!\n)|\n))*?\1[ \t]*(?=[\r\n]|$)"
)
"""Front matter: metadata for site generators at the top of a file, in YAML or TOML."""
_TARGET = r"\((?:[^()]|\([^()]*\))*\)"
_IMAGE = re.compile(rf"!\[[^\[\]]*\](?:{_TARGET}|\[[^\[\]]*\])|\]{_TARGET}")
"""An image, or the target of a link, whose text stands before it.

None reaches over a further bracket of its kind, so that brackets without end take linear time.
"""
LINE_END = re.compile(r"\r\n?|\n")
"""The line endings of CommonMark; a form feed or U+2028, at which `str.splitlines` parts too, is none."""


def markdown_parts(source: str) -> list[Part]:
    """Headings, paragraphs, list items, quotes, tables and code.

    Left out are comments, raw HTML, front matter, and paragraphs of images alone, as badges are.
    """
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    if front := _FRONT_MATTER.match(source):
        # Blanked, not cut off, so that offsets behind it stay.
        source = re.sub(r"[^\r\n]", " ", front[0]) + source[front.end() :]
    starts = [0, *(match.end() for match in LINE_END.finditer(source)), len(source)]
    found = list[Part]()

    def visit(node: SyntaxTreeNode, within: Kind | None) -> None:
        if node.type == "heading" or node.type in KINDS:
            if node.map is None:
                return
            begin, end = starts[node.map[0]], starts[node.map[1]]
            text = source[begin:end]
            begin, end = begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())
            if node.type == "heading":
                title = " ".join(child.content for child in node.children)
                found.append(Part("heading", _plain(inline, title), begin, end, int(node.tag[1:])))
            elif begin < end and (node.type != "paragraph" or re.search(r"\w", _IMAGE.sub("", text))):
                kind = within if within and node.type == "paragraph" else KINDS[node.type]
                found.append(Part(kind, source[begin:end], begin, end))
            return
        for child in node.children:
            visit(child, WITHIN.get(node.type, within))

    # What stands within a block is kept as it is written, and may be nested more deeply than Python recurses.
    parser, inline = MarkdownIt("commonmark").enable("table").disable("inline"), MarkdownIt("commonmark")
    visit(SyntaxTreeNode(parser.parse(source)), None)
    return found


def _plain(parser: MarkdownIt, text: str) -> str:
    """A line of Markdown as plain text: without the markup of links, emphasis and code, entities decoded."""
    (line,) = parser.parseInline(text)
    seen = (
        " " if "break" in one.type else one.content
        for one in line.children or ()
        if one.type != "html_inline"
    )
    return "".join(seen).strip()
