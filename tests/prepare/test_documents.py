from __future__ import annotations

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.prepare import context
from resprout.tasks.prepare.blocks import Block, Part, headings_above, text_parts, tree
from resprout.tasks.prepare.context import Sentences, opening
from resprout.tasks.prepare.html import VisibleText
from resprout.tasks.prepare.markdown import markdown_parts
from resprout.tasks.prepare.markups import parts_of
from resprout.tasks.prepare.passages import passages, sentences
from resprout.tasks.prepare.stage import prepare
from resprout.tasks.select.duplicates import Questions, lexical_vectors
from tiny_bytes import byte_tokenizer

MARKDOWN = """# Bread

Bread is baked.
It is old.

## Rye

- dense loaf
- light loaf

| kind | days |
|---|---|
| rye | 3 |

```
mix(a)
```

> As they say.

# Water

Wet.
"""
STAPLE = (
    "Bread is a staple food prepared from a dough of flour and water, usually by baking. "
    "Throughout recorded history it has been prominent around the world. "
)
HTML = f"""<html><head><title>All about bread</title><script>var hidden = 1</script></head><body>
<nav><a href="/">Home</a> <a href="/b">About us</a></nav>
<article><h1>Bread</h1><p>{STAPLE}</p>
<h2>Rye</h2><p>Rye bread is made with flour from <b>rye</b> grain &amp; water &#8212; it is darker.</p>
<ul><li>dense loaf with seeds</li></ul>
<table><tr><th>kind</th><td>rye</td></tr></table></article>
<footer>Copyright 2020 all rights reserved</footer></body></html>"""


def words(text: str) -> int:
    return len(text.split())


def test_markdown_keeps_its_tree_and_every_block_stands_where_it_says() -> None:
    blocks = tree(parts_of(MARKDOWN, "markdown"))
    assert [(one.kind, one.level) for one in blocks] == [
        ("heading", 1), ("paragraph", 0), ("heading", 2), ("item", 0), ("item", 0), ("table", 0), ("code", 0),
        ("quote", 0), ("heading", 1), ("paragraph", 0),
    ]  # fmt: skip
    assert [one.parent for one in blocks] == [None, 0, 0, 2, 2, 2, 2, 2, None, 8]
    assert headings_above(blocks, blocks[3]) == ("Bread", "Rye")
    for one in blocks:
        if one.kind != "heading":
            assert MARKDOWN[one.begin : one.end] == one.text
    assert blocks[1].text == "Bread is baked.\nIt is old."
    assert MARKDOWN[blocks[2].begin : blocks[2].end] == "## Rye"
    assert blocks[6].text == "```\nmix(a)\n```"


def test_html_loses_its_boilerplate_and_keeps_its_tree() -> None:
    blocks = tree(parts_of(HTML, "html"))
    assert [(one.kind, one.level, one.parent) for one in blocks] == [
        ("heading", 1, None), ("paragraph", 0, 0), ("heading", 2, 0), ("paragraph", 0, 2), ("item", 0, 2),
        ("table", 0, 2),
    ]  # fmt: skip
    said = " ".join(one.text for one in blocks)
    assert not any(word in said for word in ("Home", "Copyright", "hidden"))
    rye = blocks[3]
    assert rye.text == "Rye bread is made with flour from rye grain & water \u2014 it is darker."
    assert HTML[rye.begin : rye.end] == (
        "Rye bread is made with flour from <b>rye</b> grain &amp; water &#8212; it is darker."
    )
    assert HTML[blocks[4].begin : blocks[4].end] == "dense loaf with seeds"
    assert HTML[blocks[5].begin : blocks[5].end] == "kind</th><td>rye"


@pytest.mark.parametrize("mark", ["\f", "\v", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_markdown_ends_lines_as_its_parser_does(mark: str, end: str) -> None:
    text = end.join([f"One{mark}two.", "", f"## He{mark}re", "", "Three.", "", "Four.", ""])
    blocks = tree(parts_of(text, "markdown"))
    found = [(one.kind, text[one.begin : one.end]) for one in blocks]
    assert found == [
        ("paragraph", f"One{mark}two."), ("heading", f"## He{mark}re"),
        ("paragraph", "Three."), ("paragraph", "Four."),
    ]  # fmt: skip
    assert [one.text for one in blocks if one.kind == "paragraph"] == [f"One{mark}two.", "Three.", "Four."]
    plain = parts_of(text.replace("\r\n", "\n").replace("\r", "\n"), "text")
    assert [one.text for one in plain] == [f"One{mark}two.", f"## He{mark}re", "Three.", "Four."]


def test_markdown_may_nest_more_deeply_than_python_recurses() -> None:
    text = "**" * 3000 + "a" + "**" * 3000
    assert [one.text for one in parts_of(text, "markdown")] == [text]


@pytest.mark.parametrize(
    "front",
    ["---\ntitle: a\n\ntags: [b]\n---\n", "+++\r\ntitle = 'a'\r\n+++\r\n", "---\n# of a site\na: b\n---"],
)
def test_front_matter_is_no_text(front: str) -> None:
    text = f"{front}\n# One\n\nTwo.\n"
    assert [(one.text, one.begin) for one in parts_of(text, "markdown")] == [
        ("One", text.index("#", len(front))), ("Two.", text.index("Two")),
    ]  # fmt: skip


def test_a_rule_before_text_is_no_front_matter() -> None:
    text = "---\nOne sentence: two.\n\n---\n\nThree.\n"
    assert [one.text for one in parts_of(text, "markdown")] == ["One sentence: two.", "Three."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_rule_above_a_heading_takes_no_time(end: str) -> None:
    """What looks like front matter and never ends is looked through once, whatever its line ends."""
    text = end.join(["---", "# One", "", *["Two."] * 17])
    begin = time.monotonic()
    assert [one.kind for one in parts_of(text, "markdown")] == ["heading", "paragraph"]
    assert time.monotonic() - begin < 2


def test_a_heading_is_what_a_reader_sees_of_it() -> None:
    text = "# [Pumps](http://x) with *care*, `code` &amp; <b>more</b> ![drawn](y)\n"
    assert [one.text for one in parts_of(text, "markdown")] == ["Pumps with care, code & more drawn"]


def test_images_alone_are_no_paragraph_and_begin_a_sentence() -> None:
    badges = "[![built](https://a.b)](https://c.d) ![logo][one]\n![x](y)"
    text = f"{badges}\n\n![logo](https://a.b) Tools for pumps! They work.\n"
    (part,) = parts_of(text, "markdown")
    assert part.text == "![logo](https://a.b) Tools for pumps! They work."
    assert [part.text[a:b] for a, b in sentences(part.text, "en")] == [
        "![logo](https://a.b) Tools for pumps!", "They work.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("markup", "text", "ends"),
    [
        ("markdown", "```\n" + "x = some(thing)\n" * 40 + "```\n", r"```|\)"),
        ("markdown", "| a | b |\n|---|---|\n" + "| one | two |\n" * 40, r"\|"),
        ("text", "no full stop here " * 40, r"stop|here|full|no"),
        ("text", "\u0e01\u0e32\u0e23\u0e15" * 60, "."),
    ],
)
def test_no_passage_is_longer_than_it_may_be(markup: str, text: str, ends: str) -> None:
    """Code and tables are parted between lines, sentences between words, of a text without any anywhere."""
    found = list(passages(tree(parts_of(text, markup)), text, 50, len, "en"))
    assert max(len(one.text) for one in found) <= 50
    assert all(re.search(f"(?:{ends})$", one.text) for one in found)
    assert [text[one.begin : one.end] for one in found] == [one.text for one in found]
    assert "".join("".join(one.text for one in found).split()) == "".join(text.split())


class Sliced(str):
    """A text that counts the characters of its slices."""

    characters = 0

    def __getitem__(self, place: Any) -> str:
        found = super().__getitem__(place)
        self.characters += len(found)
        return found


@pytest.mark.parametrize("unit", ["word ", "word\n", "x"])
def test_a_long_sentence_is_parted_in_linear_time(unit: str) -> None:
    def copied(length: int) -> int:
        text = Sliced(unit * (length // len(unit)))
        found = list(passages([Block("paragraph", text, 0, len(text))], text, 50, len, "en"))
        assert len(found) >= length // 50
        return text.characters

    assert copied(40_000) < 2.2 * copied(20_000)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("<p>|AT&T, &copy more, salt &amp|</p>", "AT&T, © more, salt &"),
        ("<p>|a form\x0c feed\x0b, nul\x00, line \u2028 end|</p>", "a form feed, nul, line end"),
        ("<p>|one line<br>another <i>li</i>ne|</p>", "one line another line"),
        ("<ul><li>|outer<ul><li>inner|</li></ul></li></ul>", "outer inner"),
        ("<pre><code>|def f():\n    return 1|\n</code></pre>", "def f():\n    return 1"),
    ],
)
def test_html_is_found_as_it_is_written(written: str, text: str) -> None:
    before, place, after = written.split("|")
    source = HTML.replace("<h2>", f"{before}{place}{after}<h2>")
    block = tree(parts_of(source, "html"))[2]
    assert (block.text, source[block.begin : block.end]) == (text, place)


def test_a_heading_is_not_found_in_the_title_of_its_page() -> None:
    source = HTML.replace("All about bread", "Bread")
    assert source[tree(parts_of(source, "html"))[0].begin - 4 :].startswith("<h1>Bread</h1>")


def test_html_behind_an_unknown_declaration_has_no_place() -> None:
    source = HTML.replace("<h2>", "<![unknown x]><h2>")
    blocks = tree(parts_of(source, "html"))
    assert [one.begin >= 0 for one in blocks] == [True, True, False, False, False, False]


def test_a_repeated_text_is_found_behind_the_one_before() -> None:
    visible = VisibleText("<p>same text</p><p>other</p><p>same text</p>")
    assert [visible.find(text) for text in ("same text", "other", "same text")] == [
        (3, 12),
        (19, 24),
        (31, 40),
    ]
    assert visible.find("nowhere") == (-1, -1)


def test_plain_text_is_parted_between_blank_lines() -> None:
    text = "one\ntwo\n\n  \nthree\n"
    blocks = tree(parts_of(text, "text"))
    assert [one.text for one in blocks] == ["one\ntwo", "three"]
    assert [text[one.begin : one.end] for one in blocks] == ["one\ntwo", "three"]


def test_text_without_blank_lines_takes_a_memory_of_its_own_size() -> None:
    text = "a line of text\n" * 50_000
    tracemalloc.start()
    try:
        (part,) = text_parts(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert part.text == text.rstrip()
    assert peak < 10 * len(text)


def test_sentences_end_by_the_rules_of_a_language() -> None:
    text = "Dr. Smith came at 5 p.m. on Monday.  Why?\nHe slept."
    assert [text[a:b] for a, b in sentences(text, "en")] == [
        "Dr. Smith came at 5 p.m. on Monday.", "Why?", "He slept.",
    ]  # fmt: skip


def test_sentences_of_a_page_whose_place_is_not_known_stay_apart() -> None:
    """Of three sentences two have 5 tokens together, and all three 10, one more than fit."""

    def tokens(text: str) -> int:
        return {"One two. Six. Ten.": 10, "One two. Six.": 5}.get(text, 4)

    source = "<p>One <b>two</b>. Six. Ten.</p>"
    paragraph = Part("paragraph", "One two. Six. Ten.", 3, 28)
    found = passages(tree([paragraph]), source, 9, tokens, "en")
    assert [(one.text, one.begin, one.end) for one in found] == [("One two. Six.", 3, 28), ("Ten.", 3, 28)]


def test_what_stands_between_blocks_counts() -> None:
    """Two blocks of 3 tokens, and one of what stands between them, do not fit into 6."""

    def tokens(text: str) -> int:
        return len(text.split()) + text.count("\n\n")

    source = "One two three.\n\nFour five six.\n\nSeven.\n"
    found = [one.text for one in passages(tree(parts_of(source, "text")), source, 6, tokens, "en")]
    assert found == ["One two three.", "Four five six.\n\nSeven."]
    assert max(map(tokens, found)) <= 6


def test_a_passage_whose_blocks_are_found_in_another_order_has_no_place() -> None:
    parts = [Part("paragraph", "late", 10, 14), Part("paragraph", "early", 0, 5)]
    (found,) = passages(tree(parts), "early-----late", 9, words, "en")
    assert (found.text, found.begin, found.end) == ("late\n\nearly", -1, -1)


def test_passages_by_hand() -> None:
    """At most 6 words: blocks of 5 (in two sentences), 4 and 2 words under one heading, then a heading."""
    text = "# A\n\nOne two three. Four five.\n\nSix seven eight nine.\n\nTen eleven.\n\n## B\n\nTwelve.\n"
    found = list(passages(tree(parts_of(text, "markdown")), text, 6, words, "en"))
    assert [one.text for one in found] == [
        "One two three. Four five.", "Six seven eight nine.\n\nTen eleven.", "Twelve.",
    ]  # fmt: skip
    assert [one.headings for one in found] == [("A",), ("A",), ("A", "B")]
    assert [text[one.begin : one.end] for one in found] == [one.text for one in found]
    assert [one.blocks for one in found] == [(1,), (2, 3), (5,)]
    # At most 3 words: sentences part, and one that is longer between its words.
    short = list(passages(tree(parts_of(text, "markdown")), text, 3, words, "en"))
    assert [one.text for one in short] == [
        "One two three.", "Four five.", "Six seven eight", "nine.\n\nTen eleven.", "Twelve.",
    ]  # fmt: skip
    assert [text[one.begin : one.end] for one in short] == [one.text for one in short]


def test_context_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences of 3, 5, 2 and 2 words: the last come last, then the one about rye, then the nearest."""
    before = ["Rye is dark.", "Wheat is very light indeed.", "Barley grows.", "Oats too."]
    known, rye, nothing = Sentences(before, [" "] * 4, ["Write about rye", ""], words), 0, 1
    # Half of 8 words hold both sentences of 2, the other half the one about rye.
    assert known.before(4, rye, 8) == "Rye is dark. Barley grows. Oats too."
    # Half of 5 words hold one of 2; of the rest rye takes 3, or the nearest 2.
    assert known.before(4, rye, 5) == "Rye is dark. Oats too."
    assert known.before(4, nothing, 5) == "Barley grows. Oats too."
    assert known.before(4, rye, 2) == "Oats too."
    assert known.before(1, rye, 3) == "Rye is dark."
    # Of a sentence that is too long, the last words; of one without white space the last characters.
    assert known.before(2, rye, 3) == "very light indeed."
    assert Sentences(["ABCDEFGH"], [""], [""], len).before(1, 0, 3) == "FGH"
    # Before each stands what stood there.
    assert Sentences(["...", "!"], ["\n", "\n\n"], [""], len).before(2, 0, 4) == "...\n\n!"
    assert (
        Sentences(["\u68c0\u67e5\u3002", "\u5bc6\u5c01\u3002"], ["", ""], [""], len).before(2, 0, 6)
        == "\u68c0\u67e5\u3002\u5bc6\u5c01\u3002"
    )
    monkeypatch.setattr(context, "LOOK_BACK", 2)
    assert known.before(4, rye, 5) == "Barley grows. Oats too."


def test_an_opening_is_the_first_sentence_or_half_the_words() -> None:
    def parted(text: str) -> tuple[str, str]:
        cut = opening(text, sentences(text, "en"))
        return text[:cut], text[cut:]

    assert parted("One two. Three four five.") == ("One two. ", "Three four five.")
    assert parted("One two three four five six. Ten.") == ("One two three ", "four five six. Ten.")
    assert parted("One two three four.") == ("One two ", "three four.")
    assert parted("abcdef") == ("abc", "def")
    assert parted("a") == ("", "a")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    byte_tokenizer("<pad>", pad_token="<pad>").save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def run(
    folder: Path, tokenizer: Path, documents: list[dict[str, Any]], **settings: Any
) -> list[dict[str, Any]]:
    given, workdir = folder / "documents", folder / "out"
    given.mkdir()
    workdir.mkdir()
    lines = [
        json.dumps({"id": f"d{n}", "name": f"d{n}.md", "title": f"d{n}.md", "source": "s", **one})
        for n, one in enumerate(documents)
    ]
    (given / "documents.jsonl").write_text("\n".join(lines))
    config = SelectConfig.model_validate(
        {"documents": [{"source": "x"}], "budget_ratio": 0.5, "prepare": settings}
    )
    prepare.body(Job(config), {"documents": given, "dense": tokenizer}, workdir, silent)
    return [json.loads(line) for line in (workdir / "rows.jsonl").read_text().splitlines()]


def test_rows_say_where_they_stand(tmp_path: Path, tokenizer: Path) -> None:
    settings = {"passage_tokens": 60, "min_tokens": 5, "context_tokens": 40}
    rows = run(tmp_path, tokenizer, [{"text": MARKDOWN, "markup": "markdown"}], **settings)
    # Nothing stands before the first: its first sentence is shown.
    assert rows[0]["instruction"] == "Continue the text under the heading: Bread"
    assert rows[0]["input"] == "Bread is baked."
    assert rows[0]["output"] == "It is old."
    assert rows[1]["instruction"] == "Continue the text under the heading: Bread > Rye"
    # 40 bytes hold both sentences.
    assert rows[1]["input"] == "Bread is baked.\nIt is old."
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert MARKDOWN[row["begin"] : row["end"]] == row["output"]
        assert row["document"] == "d0"
    # "Wet." is shorter than 5 bytes.
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {
        "documents": 1, "unread_documents": 0, "blocks": 10, "prepared_rows": len(rows), "short_passages": 1,
    }  # fmt: skip
    blocks = [json.loads(line) for line in (tmp_path / "out" / "blocks.jsonl").read_text().splitlines()]
    assert [one["parent"] for one in blocks] == [None, 0, 0, 2, 2, 2, 2, 2, None, 8]
    assert blocks[rows[1]["blocks"][0]]["kind"] == "item"


def test_places_are_those_of_the_file_and_rows_have_plain_line_ends(tmp_path: Path, tokenizer: Path) -> None:
    text = MARKDOWN.replace("\n", "\r\n")
    settings = {"passage_tokens": 60, "min_tokens": 5, "context_tokens": 40}
    for row in run(tmp_path, tokenizer, [{"text": text, "markup": "markdown"}], **settings):
        assert text[row["begin"] : row["end"]].replace("\r\n", "\n") == row["output"]
        assert not any("\r" in row[name] for name in ("instruction", "input", "output"))


def test_a_page_whose_opening_is_shown_begins_behind_it(tmp_path: Path, tokenizer: Path) -> None:
    """Two blocks in a passage, of which the first is shown: the answer is the second."""
    second = "Rye bread is made with flour from <b>rye</b> grain and water, so it is darker."
    page = f"<html><body><article><p>{STAPLE.split('.')[0]}.</p><p>{second}</p></article></body></html>"
    (row,) = run(
        tmp_path, tokenizer, [{"text": page, "markup": "html"}], passage_tokens=200, context_tokens=0
    )
    assert row["output"] == re.sub("<.*?>", "", second)
    assert page[row["begin"] : row["end"]] == second
    assert row["blocks"] == [1]


def test_a_document_without_a_name_is_asked_for_without_one(tmp_path: Path, tokenizer: Path) -> None:
    one, other = ({"text": STAPLE, "markup": "text", "title": title} for title in ("", "Bread"))
    rows = run(tmp_path, tokenizer, [one, other], passage_tokens=200)
    assert [row["instruction"] for row in rows] == ["Continue the text", "Continue the text of Bread"]


def test_settings_that_cannot_work_are_found_before_a_run(tmp_path: Path) -> None:
    from resprout.tasks.prepare import stage

    def config(**settings: Any) -> SelectConfig:
        return SelectConfig.model_validate(
            {"documents": [{"source": "x"}], "budget_ratio": 0.5, "prepare": settings}
        )

    with pytest.raises(BadInput, match=r"'Go on \{\{ nope \}\}'.*'nope' is undefined"):
        stage.check(config(instruction="Go on {{ nope }}"), tmp_path)
    stage.check(config(instruction="Go on{% if headings %} with {{ headings[0] }}{% endif %}"), tmp_path)
    with pytest.raises(
        ValueError, match=r"min_tokens is 500, and no passage has more than passage_tokens 128"
    ):
        config(min_tokens=500)
    for unknown in ("German", "DE", "", "en_US"):
        with pytest.raises(ValueError, match=rf"'{unknown}' is no code of a language"):
            config(language=unknown)
    assert config(language="pt-br").prepare.language == "pt-br"


def told(name: str, sentences: int, headings: int = 1) -> dict[str, Any]:
    """A document that tells this and that under each of its headings."""
    parts = (
        f"# Part {part}\n\n"
        + " ".join(f"The {name} number {part} did thing {one} to text." for one in range(sentences))
        for part in range(headings)
    )
    return {"text": "\n\n".join(parts), "markup": "markdown"}


@pytest.mark.parametrize("context_tokens", [0, 45, 120])
def test_rows_of_documents_ask_different_things(tmp_path: Path, tokenizer: Path, context_tokens: int) -> None:
    """Nine sentences of about 42 bytes under each heading, two in a passage; two documents have the same."""
    told_of = [told("red fox", 9, 2), told("grey owl", 9, 2)]
    settings = {"passage_tokens": 90, "min_tokens": 5, "context_tokens": context_tokens}
    rows = run(tmp_path, tokenizer, told_of, **settings)
    assert len(rows) == 20
    assert len({row["instruction"] for row in rows}) == 2
    vectors = lexical_vectors(row["instruction"] for row in rows)
    assert Questions(rows, vectors, 0.95).contested(range(20)) == []
    source = {f"d{number}": one["text"] for number, one in enumerate(told_of)}
    for row in rows:
        text = source[row["document"]]
        assert text[row["begin"] : row["end"]] == row["output"]
        # What stands directly before comes last, be it under the heading before or the passage's own opening.
        before = " ".join(re.sub("# Part .", "", text[: row["begin"]]).split())
        assert before.endswith(row["input"][-30:])


def test_the_work_grows_with_the_document(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    counted, fitted, fit = list[str](), list[int](), TfidfVectorizer.fit_transform

    def tokenize(text: str, add_special_tokens: bool) -> dict[str, list[str]]:
        counted.append(text)
        return {"input_ids": text.split()}

    def fits(self: TfidfVectorizer, texts: list[str]) -> Any:
        fitted.append(len(texts))
        return fit(self, texts)

    monkeypatch.setattr("resprout.tasks.models.load.load_tokenizer", lambda *_: tokenize)
    monkeypatch.setattr(TfidfVectorizer, "fit_transform", fits)

    def calls(parts: int) -> int:
        counted.clear()
        folder = tmp_path / str(parts)
        folder.mkdir()
        settings = {"passage_tokens": 16, "min_tokens": 1, "context_tokens": 16}
        assert len(run(folder, tokenizer, [told("red fox", 4, parts)], **settings)) == 4 * parts
        return len(counted)

    # A block, its four sentences, and the three pairs of them that do not fit, each once.
    assert [calls(parts) for parts in (10, 40)] == [10 * 8, 40 * 8]
    assert fitted == [40, 160]


def test_documents_that_cannot_be_read_are_counted(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 2)
    monkeypatch.setattr("resprout.tasks.prepare.stage.SECONDS_A_DOCUMENT", 1)
    menu = {"text": "<html><body><nav><a href='/'>Home</a></nav></body></html>", "markup": "html"}
    broken, slow = {"text": "x", "markup": "odd"}, {"text": f"# {'[' * 600_000}", "markup": "markdown"}
    rows = run(tmp_path, tokenizer, [menu, broken, slow, told("red fox", 9)])
    assert {row["document"] for row in rows} == {"d3"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["documents"], metrics["unread_documents"]) == (4, 3)
    assert "of 4 documents 3 cannot be read, the first: d0.md (no text in it)" in caplog.text
    (tmp_path / "none").mkdir()
    ended = r"2 cannot be read, the first: d0\.md \(its parser did not end within 3 s of processor time\)"
    with pytest.raises(BadInput, match=ended):
        run(tmp_path / "none", tokenizer, [slow, broken])


@pytest.mark.parametrize("unit", ["![", "[", "](", "![a](", "a](b("])
def test_brackets_without_end_take_linear_time(unit: str) -> None:
    def seconds(count: int) -> float:
        begin = time.process_time()
        markdown_parts(unit * count)
        return time.process_time() - begin

    markdown_parts(unit)
    assert min(seconds(20_000) for _ in range(3)) < 20 * max(0.002, min(seconds(2000) for _ in range(3)))


def test_targets_of_links_may_hold_brackets() -> None:
    assert markdown_parts("[![](https://a.org/b_(c).svg)](https://a.org/Foo_(bar))") == []


def test_documents_without_a_row_say_so(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(BadInput, match=r"of 1 documents of select\.documents not one row is left: 1 blocks"):
        run(tmp_path, tokenizer, [{"text": "Short.", "markup": "text"}])


def test_a_library_that_is_missing_is_named_before_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from resprout.tasks.prepare import stage

    config = SelectConfig.model_validate({"documents": [{"source": "x"}], "budget_ratio": 0.5})
    stage.check(config, tmp_path)
    monkeypatch.setattr(stage, "LIBRARIES", ("sentencex", "no_such_library"))
    with pytest.raises(BadInput, match=r"needs no_such_library, not installed here; pip install .*sentencex"):
        stage.check(config, tmp_path)
    stage.check(SelectConfig.model_validate({"pool": [{"source": "x"}], "budget_ratio": 0.5}), tmp_path)
