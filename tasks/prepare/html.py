"""Blocks of an HTML page without its boilerplate, by trafilatura, each found again in the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

from resprout.tasks.prepare.blocks import Kind, Part

KINDS: dict[str, Kind] = {
    "head": "heading", "p": "paragraph", "item": "item", "table": "table", "code": "code", "quote": "quote",
}  # fmt: skip
INLINE = {"code", "del"}
"""Elements within a block that part no words."""
HIDDEN = {"title", "script", "style", "noscript", "template"}


def html_parts(source: str) -> list[Part]:
    """Headings, paragraphs, list items, quotes, tables and code of a page's main content.

    Menus, footers, advertisements and comments go. A page in which nothing is found has no parts.
    """
    import trafilatura

    main = trafilatura.extract(
        source, output_format="xml", include_tables=True, include_comments=False, include_formatting=False
    )
    if main is None:
        return []
    # Written by the library a moment ago.
    root = ElementTree.fromstring(main).find("main")
    visible, found = VisibleText(source), list[Part]()
    for element in root if root is not None else ():
        _visit(element, visible, found)
    return found


def _visit(element: ElementTree.Element, visible: VisibleText, found: list[Part]) -> None:
    kind = KINDS.get(element.tag)
    if kind is None:
        for child in element:
            _visit(child, visible, found)
        return
    if kind == "table":
        rows = [[_text(cell) for cell in row] for row in element]
        text = "\n".join(" | ".join(cells) for cells in rows)
        begin, end = visible.find("".join(cell for cells in rows for cell in cells))
    else:
        text = "".join(element.itertext()).strip() if kind == "code" else _text(element)
        begin, end = visible.find(text)
    rend = element.get("rend", "")
    level = int(rend[1:]) if kind == "heading" and rend[1:].isdigit() else int(kind == "heading")
    if text:
        found.append(Part(kind, text, begin, end, level))


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(_pieces(element)).split())


def _pieces(element: ElementTree.Element) -> Iterator[str]:
    """Text of an element with white space where a line or a block within it begins or ends."""
    yield element.text or ""
    for child in element:
        apart = "" if child.tag in INLINE else " "
        yield apart
        yield from _pieces(child)
        yield apart + (child.tail or "")


class VisibleText:
    """The text of a page without white space, and where in the source each character of it stands."""

    def __init__(self, source: str) -> None:
        reader = _Reader(source)
        # It gives up at a declaration that it does not know; places of what stands behind are not known then.
        with suppress(AssertionError):
            reader.feed(source)
            reader.close()
        self.characters = "".join(one for one, _, _ in reader.found)
        self.places = [(begin, end) for _, begin, end in reader.found]
        self._from = 0

    def find(self, text: str) -> tuple[int, int]:
        """Where a text begins and ends in the source, behind what was found before; (-1, -1): nowhere."""
        wanted = "".join(text.split())
        for start in (self._from, 0):
            at = self.characters.find(wanted, start) if wanted else -1
            if at >= 0:
                self._from = at + len(wanted)
                return self.places[at][0], self.places[self._from - 1][1]
        return -1, -1


class _Reader(HTMLParser):
    """Collects the characters that trafilatura keeps, with their places: (character, begin, end)."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.source, self.starts = source, [0]
        for line in source.split("\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.hidden = 0
        self.found = list[tuple[str, int, int]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in HIDDEN))

    def handle_data(self, data: str) -> None:
        begin = self._begin()
        self._add(data, [(begin + place, begin + place + 1) for place in range(len(data))])

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name}")

    def _reference(self, written: str) -> None:
        begin = self._begin()
        # The semicolon may lack, and then what is written may be no reference: AT&T.
        end = begin + len(written) + self.source.startswith(";", begin + len(written))
        text = unescape(self.source[begin:end])
        self._add(text, [(begin, end)] * len(text))

    def _begin(self) -> int:
        line, column = self.getpos()
        return self.starts[line - 1] + column

    def _add(self, text: str, places: list[tuple[int, int]]) -> None:
        if not self.hidden:
            marked = zip(text, places, strict=True)
            self.found += [(one, *at) for one, at in marked if one.isprintable() and not one.isspace()]
