"""Blocks of Markdown, by markdown-it-py, as they stand in the source."""

from __future__ import annotations

import re

from resprout.tasks.prepare.blocks import Kind, Part

KINDS: dict[str, Kind] = {"fence": "code", "code_block": "code", "table": "table", "paragraph": "paragraph"}
WITHIN: dict[str, Kind] = {"list_item": "item", "blockquote": "quote"}
"""Kind of a paragraph by the block that contains it."""
_FRONT_MATTER = re.compile(
    r"(---|\+\+\+)[ \t]*(?:\r\n?|\n)(?=[\w\"'-]+[ \t]*[:=]|[#\[])(?:.*(?:\r\n?|\n))*?\1[ \t]*(?=[\r\n]|$)"
)
"""What site generators read of a page before its text, as YAML or TOML."""
_IMAGE = re.compile(r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])|\]\([^)]*\)")
"""An image, or where a link of what stood before leads to."""
LINE_END = re.compile(r"\r\n?|\n")
"""The line endings of CommonMark; a form feed or U+2028, at which `str.splitlines` parts too, is none."""


def markdown_parts(source: str) -> list[Part]:
    """Headings, paragraphs, list items, quotes, tables and code.

    Left out are comments, raw HTML, front matter, and paragraphs of images alone, as badges are.
    """
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    if front := _FRONT_MATTER.match(source):
        # Blank, so that what follows stands where it did.
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
                found.append(Part("heading", _plain(title), begin, end, int(node.tag[1:])))
            elif begin < end and (node.type != "paragraph" or re.search(r"\w", _IMAGE.sub("", text))):
                kind = within if within and node.type == "paragraph" else KINDS[node.type]
                found.append(Part(kind, source[begin:end], begin, end))
            return
        for child in node.children:
            visit(child, WITHIN.get(node.type, within))

    # What stands within a block is kept as it is written, and may be nested more deeply than Python recurses.
    parser = MarkdownIt("commonmark").enable("table").disable("inline")
    visit(SyntaxTreeNode(parser.parse(source)), None)
    return found


def _plain(text: str) -> str:
    """What a reader sees of a line: links, emphasis, code and entities without their marks."""
    from markdown_it import MarkdownIt

    (line,) = MarkdownIt("commonmark").parseInline(text)
    seen = (
        " " if "break" in one.type else one.content
        for one in line.children or ()
        if one.type != "html_inline"
    )
    return "".join(seen).strip()
