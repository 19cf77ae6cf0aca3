"""Markdown for MLflow: what comes from outside stays text, links stay inside MLflow."""

from __future__ import annotations

import pytest

from resprout.infra.markdown import code, link, model_page, plain, run_page

HOSTILE = [
    "<img src=https://evil/x.png>",
    "![x](https://evil/x.png)",
    "[click](javascript:alert(1))",
    "a` [x](https://evil) `b",
    "``` [x](https://evil)",
    "`",
    "a | b | c",
    "x\n\n# Heading\n- item",
    "&lt;b&gt;",
    "**bold** __bold__ ~~gone~~",
    "\\](https://evil)",
]


def rendered(markdown: str) -> str:
    """HTML by the CommonMark reference rules, with links and tables as MLflow has them."""
    from markdown_it import MarkdownIt

    return MarkdownIt("js-default", {"html": True}).render(markdown)


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_becomes_neither_markup_nor_a_line_of_its_own(text: str) -> None:
    line = " ".join(text.split())
    for made in (code(text), plain(text), link(text, "#/models/x")):
        assert "\n" not in made
        html = rendered(f"before {made} after")
        for tag in ("<img", "<h1", "<li", "<strong", "<s>", 'https://evil"', 'href="javascript'):
            assert tag not in html.replace("&lt;", ""), html
    assert line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(
        '"', "&quot;"
    ) in rendered(code(text))
    assert rendered(link(text, "#/models/x")).count("<a ") == 1


def test_long_text_is_cut() -> None:
    assert len(code("x" * 1000)) == 302
    assert code("x" * 1000).endswith("...`")
    assert code("") == "` `"


def test_addresses_are_quoted() -> None:
    assert run_page("1", "ab", "report/a b.html") == "#/experiments/1/runs/ab/artifacts/report/a%20b.html"
    assert model_page("my/model (2)", "3") == "#/models/my%2Fmodel%20%282%29/versions/3"
    assert model_page("x") == "#/models/x"
