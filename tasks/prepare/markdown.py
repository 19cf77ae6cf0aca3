"""Blocks of Markdown, by markdown-it-py, as they stand in the source."""

from __future__ import annotations

import re

from resprout.tasks.prepare.blocks import Kind, Part

KINDS: dict[str, Kind] = {"fence": "code", "code_block": "code", "table": "table", "paragraph": "paragraph"}
WITHIN: dict[str, Kind] = {"list_item": "item", "blockquote": "quote"}
"""Kind of a paragraph by the block that contains it."""
LINE_END = re.compile(r"\r\n?|\n")
"""The line endings of CommonMark; a form feed or U+2028, at which `str.splitlines` parts too, is none."""


def markdown_parts(source: str) -> list[Part]:
    """Headings, paragraphs, list items, quotes, tables and code; comments and raw HTML are left out."""
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

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
                title = " ".join(child.content for child in node.children).strip()
                found.append(Part("heading", title, begin, end, int(node.tag[1:])))
            elif begin < end:
                kind = within if within and node.type == "paragraph" else KINDS[node.type]
                found.append(Part(kind, source[begin:end], begin, end))
            return
        for child in node.children:
            visit(child, WITHIN.get(node.type, within))

    # What stands within a block is kept as it is written, and may be nested more deeply than Python recurses.
    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    visit(SyntaxTreeNode(parser.parse(source)), None)
    return found
