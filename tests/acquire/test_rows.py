from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, RowSource, TextSource
from resprout.tasks.acquire.jobs import AcquireData
from resprout.tasks.acquire.source import Context
from resprout.tasks.acquire.stage import acquire_rows, acquire_task, acquire_text


def row(number, **more):
    return {"instruction": f"do {number}", "input": "", "output": f"done {number}", **more}


def bucket(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100


def test_rows_are_rendered_and_have_a_stable_id(bring, jsonl):
    jsonl("pool.jsonl", [{"q": "Add 1 and 2.", "hint": "small", "a": "3", "kind": "maths"}])
    source = RowSource(
        source="pool.jsonl",
        instruction="{{ q }}",
        input="{{ hint }}",
        output="{{ a }}",
        category="{{ kind }}",
    )
    expected = hashlib.sha256(b"Add 1 and 2.\nsmall\n3").hexdigest()
    assert bring(acquire_rows, source) == [
        {
            "id": expected,
            "instruction": "Add 1 and 2.",
            "input": "small",
            "output": "3",
            "category": "maths",
            "source": "pool.jsonl",
            "file": "pool.jsonl",
            "row": 1,
        }
    ]


def test_where_looks_at_the_columns(bring, jsonl):
    jsonl("pool.jsonl", [row(index, level=index) for index in range(6)])
    found = bring(acquire_rows, RowSource(source="pool.jsonl", where="level >= 2 and level < 4"))
    assert [one["instruction"] for one in found] == ["do 2", "do 3"]


def test_hash_ranges_part_the_rows(bring, jsonl):
    rows = [row(index) for index in range(200)]
    jsonl("pool.jsonl", rows)
    low = bring(acquire_rows, RowSource(source="pool.jsonl", hash_percent=(0, 30)))
    high = bring(acquire_rows, RowSource(source="pool.jsonl", hash_percent=(30, 100)))
    expected = [one["instruction"] for one in rows if bucket(f"{one['instruction']}\n\n{one['output']}") < 30]
    assert [one["instruction"] for one in low] == expected
    assert 30 < len(low) < 90
    assert len(low) + len(high) == 200


def test_repeats_count_once_for_the_first_source_in_its_place(bring, jsonl):
    jsonl("a.jsonl", [row(1), row(2), row(1), row(3)])
    jsonl("b.jsonl", [row(9), row(2), row(4)])
    found = bring(acquire_rows, RowSource(source="a.jsonl"), RowSource(source="b.jsonl"))
    assert [(one["instruction"], one["source"]) for one in found] == [
        ("do 1", "a.jsonl"),
        ("do 2", "a.jsonl"),
        ("do 3", "a.jsonl"),
        ("do 9", "b.jsonl"),
        ("do 4", "b.jsonl"),
    ]


def test_a_limit_samples_by_seed_and_keeps_the_order(bring, jsonl):
    jsonl("pool.jsonl", [row(index) for index in range(100)])
    source = RowSource(source="pool.jsonl", limit=10)
    numbers = [int(one["instruction"].split()[1]) for one in bring(acquire_rows, source)]
    assert len(numbers) == 10
    assert numbers == sorted(numbers)
    assert numbers != list(range(10))
    assert [int(one["instruction"].split()[1]) for one in bring(acquire_rows, source)] == numbers
    other = bring(acquire_rows, source, seed=18)
    assert [int(one["instruction"].split()[1]) for one in other] != numbers


def test_text(bring, tmp_path):
    (tmp_path / "a.txt").write_text("First line\nsecond line\n\nNext\u2028one\n")
    found = bring(acquire_text, TextSource(source="a.txt", text="<{{ text }}>"))
    assert found == [
        {"source": "a.txt", "text": "<First line\nsecond line>"},
        {"source": "a.txt", "text": "<Next\u2028one>"},
    ]


def test_the_split_can_go_by_another_column(bring, jsonl):
    rows = [{**row(index), "passage": f"p{index % 20}"} for index in range(60)]
    jsonl("pool.jsonl", rows)
    split = {"hash_of": "{{ passage }}", "hash_percent": (0, 40)}
    found = bring(acquire_rows, RowSource(source="pool.jsonl", **split))
    expected = [one["instruction"] for one in rows if bucket(one["passage"]) < 40]
    assert [one["instruction"] for one in found] == expected
    assert 0 < len(found) < 60


def test_task_rows_keep_their_columns_and_their_repeats(bring, jsonl):
    rows = [{"sentence": "a _ b", "answer": 1, "options": ["x", "y"]}] * 2 + [
        {"sentence": "c", "answer": None}
    ]
    jsonl("task.jsonl", rows)
    assert bring(acquire_task, DataSource(source="task.jsonl")) == rows
    assert bring(acquire_task, DataSource(source="task.jsonl", where="answer == 1")) == rows[:2]


def test_a_folder_is_all_its_data_files(bring, jsonl, tmp_path):
    jsonl("pool/b.jsonl", [row(2)])
    jsonl("pool/a.jsonl", [row(1)])
    (tmp_path / "pool" / "README.md").write_text("about")
    (tmp_path / "pool" / "weights.bin").write_bytes(b"x")
    assert [one["instruction"] for one in bring(acquire_rows, RowSource(source="pool"))] == ["do 1", "do 2"]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def about(tmp_path):
    """What the newest artifact says about its sources."""
    newest = max(tmp_path.rglob("*.sources.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def test_rows_know_their_file_and_their_number_there(bring, jsonl, tmp_path):
    jsonl("pool/b/x.jsonl", [row(1), row(2)])
    (tmp_path / "pool" / "a.csv").write_text('instruction,output\n"one\nline","d"\nq,e\n')
    write_parquet(tmp_path / "pool" / "c.parquet", [row(1), row(3)])
    found = bring(acquire_rows, RowSource(source="pool", on_bad_row="skip"))
    # A record of CSV is at its first line; what repeats another is named by the first.
    assert [(one["file"], one["row"], one["output"]) for one in found] == [
        ("a.csv", 2, "d"),
        ("a.csv", 4, "e"),
        ("b/x.jsonl", 1, "done 1"),
        ("b/x.jsonl", 2, "done 2"),
        ("c.parquet", 2, "done 3"),
    ]


def test_files_about_the_data_hold_no_rows(bring, jsonl, tmp_path):
    write_parquet(tmp_path / "pool" / "train-0.parquet", [row(1)])
    write_parquet(tmp_path / "pool" / "train-1.pq", [row(2)])
    for name in ("dataset_info.json", "state.json", "_SUCCESS", "README.md"):
        (tmp_path / "pool" / name).write_text("{}")
    assert [one["row"] for one in bring(acquire_rows, RowSource(source="pool"))] == [1, 1]
    assert about(tmp_path) == [
        {
            "source": "pool",
            "read": ["train-0.parquet", "train-1.pq"],
            "passed_over": ["README.md", "_SUCCESS", "dataset_info.json", "state.json"],
            "bad_rows": 0,
            "first_bad_rows": [],
        }
    ]


def test_of_a_format_only_its_files_are_read(bring, jsonl, tmp_path):
    write_parquet(tmp_path / "pool" / "a.parquet", [row(1)])
    jsonl("pool/b.jsonl", [row(2)])
    jsonl("pool/c.json", [row(3)])

    def numbers(form):
        found = bring(acquire_rows, RowSource(source="pool", format=form))
        return [one["instruction"].split()[1] for one in found]

    assert numbers("parquet") == ["1"]
    assert numbers("jsonl") == ["2", "3"]
    with pytest.raises(BadInput, match=r"pool holds no data file of format csv among a\.parquet, b"):
        numbers("csv")
    with pytest.raises(BadInput, match=r"c\.json: expected an array of objects, found '\{"):
        numbers("json")


def test_files_without_an_ending_are_read_where_the_format_is_given(bring, jsonl, tmp_path):
    jsonl("pool/part-00000", [row(1)])
    jsonl("pool/part-00001", [row(2)])
    (tmp_path / "pool" / "_SUCCESS").write_text("")
    assert len(bring(acquire_rows, RowSource(source="pool", format="jsonl"))) == 2
    with pytest.raises(BadInput, match=r"pool holds no data file among _SUCCESS, part-00000, part-00001; "):
        bring(acquire_rows, RowSource(source="pool"))


def test_what_is_passed_over_is_said(bring, jsonl, tmp_path, caplog):
    jsonl("pool/a.jsonl", [row(1)])
    (tmp_path / "pool" / "LICENSE").write_text("mine")
    with caplog.at_level("INFO", logger="resprout"):
        bring(acquire_rows, RowSource(source="pool"))
    (said,) = caplog.records
    assert (said.levelname, said.getMessage()) == ("INFO", "pool: read a.jsonl; passed over LICENSE")
    caplog.clear()
    (tmp_path / "pool" / "b.jsonl.zst").write_bytes(b"x")
    bring(acquire_rows, RowSource(source="pool"))
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert said.getMessage() == "pool: read a.jsonl; passed over LICENSE, b.jsonl.zst"


def test_a_pattern_names_files(bring, jsonl, tmp_path, context):
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "deep/train-2.jsonl"):
        jsonl(f"pool/{name}", [row(name)])
    found = bring(acquire_rows, RowSource(source="pool/train-*.jsonl"))
    assert [(one["file"], one["source"]) for one in found] == [
        ("train-0.jsonl", "pool/train-*.jsonl"),
        ("train-1.jsonl", "pool/train-*.jsonl"),
    ]
    deep = bring(acquire_rows, RowSource(source=str(tmp_path / "po*" / "**" / "train-*.jsonl")))
    assert [one["file"] for one in deep] == [
        "pool/deep/train-2.jsonl",
        "pool/train-0.jsonl",
        "pool/train-1.jsonl",
    ]
    uri = AcquireData.pin([RowSource(source="pool/train-*.jsonl")], context).origin()["sources"][0]["uri"]
    assert len(bring(acquire_rows, RowSource(source=uri))) == 2
    (tmp_path / "pool" / "rows.dat").write_text(json.dumps(row(9)))
    assert bring(acquire_rows, RowSource(source="pool/*.dat", format="jsonl"))[0]["file"] == "rows.dat"
    jsonl("pool/train-2.jsonl", [{"other": 1}])
    with pytest.raises(BadInput, match=r"^pool/train-2\.jsonl, row 1: "):
        bring(acquire_rows, RowSource(source="pool/train-*.jsonl"))
    with pytest.raises(BadInput, match=r"there is no pool/valid-\*\.jsonl"):
        bring(acquire_rows, RowSource(source="pool/valid-*.jsonl"))


def test_a_file_with_a_wild_character_in_its_name(bring, jsonl):
    jsonl("pool[1].jsonl", [row(1)])
    assert bring(acquire_rows, RowSource(source="pool[1].jsonl"))[0]["source"] == "pool[1].jsonl"


def test_a_package_ships_data(bring, jsonl, tmp_path):
    jsonl("packages/toy_data/sets/x.jsonl", [row(1)])
    context = Context(tmp_path / "home", tmp_path, (tmp_path / "packages",))
    found = bring(acquire_rows, RowSource(source="package://toy_data/sets/x.jsonl"), context=context)
    assert found[0]["source"] == "toy_data/sets/x.jsonl"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "pool.jsonl holds no rows"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": \n', "pool.jsonl, line 2: expected JSON"),
        ("[1, 2]\n", "pool.jsonl, line 1: expected a JSON object"),
        ('{"question": "a"}\n', r"pool.jsonl, row 1: .*the row's columns are: question"),
        ('{"instruction": "a", "output": ""}\n', "pool.jsonl, row 1: the output is empty"),
        ('{"instruction": " ", "output": "b"}\n', "pool.jsonl, row 1: the instruction is empty"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(bring, tmp_path, text, sentence):
    (tmp_path / "pool.jsonl").write_text(text)
    with pytest.raises(BadInput, match=sentence) as caught:
        bring(acquire_rows, RowSource(source="pool.jsonl"))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"instruction": "q"}, {"output": "{a}"}, {"hash_of": "q "}], ids=str)
def test_a_column_named_without_braces(bring, jsonl, wrong):
    """Each row would have one and the same text; a category may be a plain word."""
    jsonl("pool.jsonl", [{"q": "Add 1 and 2.", "a": "3", "code": "1 + 2"}])
    right = {"source": "pool.jsonl", "instruction": "{{ q }}", "output": "{{ a }}", "category": "code"}
    assert bring(acquire_rows, RowSource(**right))[0]["category"] == "code"
    with pytest.raises(BadInput, match=r"pool.jsonl, row 1: the template .* write '\{\{ [qa] \}\}'"):
        bring(acquire_rows, RowSource(**{**right, **wrong}))


def test_what_leaves_nothing_says_so(bring, jsonl):
    jsonl("pool.jsonl", [row(1)])
    with pytest.raises(BadInput, match=r"no row is left of 1: where 'false' leaves out 1; widen where"):
        bring(acquire_rows, RowSource(source="pool.jsonl", where="false"))
    jsonl("pool.jsonl", [*(row(number) for number in range(1, 6)), {"q": 1}])
    free = next(one for one in range(100) if one not in {bucket(f"done {number}") for number in (3, 4, 5)})
    source = RowSource(
        source="pool.jsonl",
        where="output > 'done 2'",
        hash_of="{{ output }}",
        hash_percent=(free, free + 1),
        on_bad_row="skip",
    )
    said = (
        r"no row is left of 6: where .output > 'done 2'. leaves out 2; hash_percent \[\d+, \d+\) leaves out "
        r"3; 1 were skipped by on_bad_row.*; widen where, or widen hash_percent, or mend its rows"
    )
    with pytest.raises(BadInput, match=said):
        bring(acquire_rows, source)


def test_an_empty_text_names_its_line(bring, jsonl):
    jsonl("t.jsonl", [{"text": "a"}, {"text": "  "}])
    with pytest.raises(BadInput, match=r"t\.jsonl, row 2: the text is empty"):
        bring(acquire_text, TextSource(source="t.jsonl"))


def test_a_missing_file(bring):
    with pytest.raises(BadInput, match=r"there is no .*absent.jsonl"):
        bring(acquire_rows, RowSource(source="absent.jsonl"))


def test_the_key_holds_content_and_settings_but_no_place(jsonl, tmp_path):
    def key(path, **settings):
        context = Context(tmp_path / "home", tmp_path)
        source = RowSource(source=str(path), **settings)
        return json.dumps(AcquireData.pin([source], context).key_data(), sort_keys=True)

    first = jsonl("one/pool.jsonl", [row(1)])
    same = jsonl("two/pool.jsonl", [row(1)])
    other = jsonl("three/pool.jsonl", [row(2)])
    assert key(first) == key(same) == key(first, licence="mine")
    assert str(tmp_path) not in key(first)
    assert len({key(first), key(other), key(first, limit=1), key(first, instruction="x")}) == 4


def test_the_record_says_where_it_came_from(jsonl, tmp_path):
    path = jsonl("pool.jsonl", [row(1)])
    context = Context(tmp_path / "home", tmp_path)
    job = AcquireData.pin([RowSource(source="pool.jsonl", licence="CC-BY-4.0")], context)
    (origin,) = job.origin()["sources"]
    assert origin["given"] == "pool.jsonl"
    assert origin["uri"] == path.as_uri()
    assert origin["sha256"] == {"pool.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert job.licence_note() == "CC-BY-4.0"
    json.dumps(job.origin())


def test_bad_rows_are_skipped_where_the_source_says_so_and_counted(bring, jsonl, tmp_path):
    rows = [row(1), row(2, output=""), {"output": "no task"}, row(3), row(3), row(4)]
    jsonl("pool.jsonl", rows)
    with pytest.raises(BadInput, match=r"row 2: the output is empty; .* or by on_bad_row: skip"):
        bring(acquire_rows, RowSource(source="pool.jsonl"))
    found = bring(acquire_rows, RowSource(source="pool.jsonl", on_bad_row="skip"))
    assert [one["instruction"] for one in found] == ["do 1", "do 3", "do 4"]
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text()) == {"rows": 3, "repeated_rows": 1, "bad_rows": 2}


def test_rows_that_cannot_be_read_are_skipped_too(bring, tmp_path, caplog):
    call = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    lines = [
        json.dumps({"messages": good, "level": 1}).encode(),
        b'{"messages": ',
        b"[1]",
        b'{"messages": "\\ud800", "level": 1}',
        b'{"messages": "\xff", "level": 1}',
        json.dumps({"messages": good}).encode(),
        json.dumps({"messages": call, "level": 1}).encode(),
        json.dumps({"messages": good, "level": 0}).encode(),
        json.dumps({"messages": [good[0], {"role": "assistant", "content": "b"}], "level": 1}).encode(),
    ]
    (tmp_path / "pool.jsonl").write_bytes(b"\n".join(lines))
    source = {"source": "pool.jsonl", "where": "level > 0"}
    source |= {"instruction": "{{ messages | first_question }}", "output": "{{ messages | first_answer }}"}
    with pytest.raises(BadInput, match=r"pool\.jsonl, line 2: expected JSON"):
        bring(acquire_rows, RowSource(**source))
    found = bring(acquire_rows, RowSource(**source, on_bad_row="skip"))
    assert [(one["row"], one["output"]) for one in found] == [(1, "a"), (9, "b")]
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text()) == {"rows": 2, "repeated_rows": 0, "bad_rows": 6}
    # The first five; the row that calls a tool is the sixth.
    assert about(tmp_path)[0]["bad_rows"] == 6
    assert [one["row"] for one in about(tmp_path)[0]["first_bad_rows"]] == [2, 3, 4, 5, 6]
    (said,) = caplog.records
    assert said.getMessage().startswith(
        "pool.jsonl: 6 were skipped by on_bad_row, the first: pool.jsonl, line 2: expected JSON"
    )
    assert (
        "pool.jsonl, row 6: the where 'level > 0' does not work on a row: 'level' is undef"
        in said.getMessage()
    )
    assert str(tmp_path) not in said.getMessage()


def test_a_turn_that_calls_a_tool_is_named_by_row_and_column(bring, jsonl):
    call = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]
    jsonl("pool.jsonl", [{"messages": call}])
    source = RowSource(source="pool.jsonl", instruction="q", output="{{ messages | first_answer }}")
    sentence = r"pool\.jsonl, row 1: .*'\{\{ messages \| first_answer \}\}' .*: the first answer says nothing"
    with pytest.raises(BadInput, match=sentence):
        bring(acquire_rows, source)


def test_records_with_other_cells_are_skipped(bring, tmp_path):
    (tmp_path / "pool.csv").write_text("instruction,output\nq,a\nq\nq,a,b\nr,b\n")
    found = bring(acquire_rows, RowSource(source="pool.csv", on_bad_row="skip"))
    assert [(one["row"], one["output"]) for one in found] == [(2, "a"), (5, "b")]
    with pytest.raises(BadInput, match=r"pool\.csv, line 3: expected 2 cells as in the header, found 1"):
        bring(acquire_rows, RowSource(source="pool.csv"))


def test_bad_documents_and_task_rows_are_skipped_too(bring, jsonl, tmp_path):
    from resprout.configs.schema import DocumentSource
    from resprout.tasks.acquire.stage import acquire_documents

    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": " "}\n{"text": ["b"]}\n{\n')
    assert [one["text"] for one in bring(acquire_text, TextSource(source="t.jsonl", on_bad_row="skip"))] == [
        "a"
    ]
    assert about(tmp_path)[0]["bad_rows"] == 3
    kept = bring(acquire_task, DataSource(source="t.jsonl", on_bad_row="skip"))
    assert [one["text"] for one in kept] == ["a", " ", ["b"]]
    (tmp_path / "docs").mkdir()
    for name, text in (("a.md", b"A"), ("b.md", b" "), ("c.md", b"\xff")):
        (tmp_path / "docs" / name).write_bytes(text)
    found = bring(acquire_documents, DocumentSource(source="docs", on_bad_row="skip"))
    assert [one["name"] for one in found] == ["a.md"]
    assert [one["file"] for one in about(tmp_path)[0]["first_bad_rows"]] == ["b.md", "c.md"]


def test_rows_of_which_all_are_bad_say_so(bring, jsonl):
    jsonl("pool.jsonl", [{"q": 1}, {"q": 2}])
    with pytest.raises(BadInput, match=r"no row is left of 2: 2 were skipped by on_bad_row, the first: pool"):
        bring(acquire_rows, RowSource(source="pool.jsonl", on_bad_row="skip"))


def test_rows_of_several_sources_are_counted_once(bring, jsonl, tmp_path):
    jsonl("a.jsonl", [row(1), row(2)])
    jsonl("b.jsonl", [row(2), row(2), row(3)])
    assert len(bring(acquire_rows, RowSource(source="a.jsonl"), RowSource(source="b.jsonl"))) == 3
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text()) == {"rows": 3, "repeated_rows": 2, "bad_rows": 0}


def test_rows_are_taken_as_they_come():
    """Of a source without end the first rows are there at once."""
    from itertools import count, islice

    from resprout.tasks.acquire.rows import Item, taken

    endless = (Item(str(number % 5), str(number), {"number": number}) for number in count())
    source = DataSource(source="x")
    assert [one.row["number"] for one in islice(taken(endless, source, 0, unique=True), 5)] == [*range(5)]


def test_documents_are_files_or_rows(bring, jsonl, tmp_path):
    from resprout.configs.schema import DocumentSource
    from resprout.tasks.acquire.stage import acquire_documents

    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nOne.\n\nTwo.\n")
    (folder / "b.html").write_text("<p>B</p>")
    (folder / "same.txt").write_text("<p>B</p>")
    (folder / "logo.png").write_bytes(b"\x89PNG")
    found = bring(acquire_documents, DocumentSource(source="docs"))
    assert [(one["name"], one["markup"]) for one in found] == [("a.md", "markdown"), ("b.html", "html")]
    assert found[0]["text"] == "# A\n\nOne.\n\nTwo.\n"
    assert found[0]["id"] == hashlib.sha256(found[0]["text"].encode()).hexdigest()
    jsonl("pages.jsonl", [{"page": "<p>x</p>"}, {"page": "<p>y</p>"}])
    rows = bring(acquire_documents, DocumentSource(source="pages.jsonl", text="{{ page }}", markup="html"))
    assert [(one["markup"], one["text"]) for one in rows] == [("html", "<p>x</p>"), ("html", "<p>y</p>")]
    # A file's name may be asked about; where a row stands is nothing to learn, its title is.
    jsonl("titled.jsonl", [{"text": "x", "title": "X"}, {"text": "y"}])
    titled = bring(acquire_documents, DocumentSource(source="titled.jsonl"))
    assert [(one["name"], one["title"]) for one in titled] == [
        ("titled.jsonl, row 1", "X"),
        ("titled.jsonl, row 2", ""),
    ]
    assert found[0]["title"] == "a.md"
    (tmp_path / "paper.pdf").write_bytes(b"%PDF")
    with pytest.raises(
        BadInput, match=r"documents are not read of paper\.pdf, but of \.html, .* a PDF to text"
    ):
        bring(acquire_documents, DocumentSource(source="paper.pdf"))
    (folder / "a.md").write_bytes(b"\xef\xbb\xbfOne.\r\n")
    assert bring(acquire_documents, DocumentSource(source="docs"))[0]["text"] == "One.\r\n"
    (folder / "a.md").write_text("  \n")
    with pytest.raises(BadInput, match=r"a\.md: the document is empty; leave it out by `where`"):
        bring(acquire_documents, DocumentSource(source="docs"))


def test_bad_documents_are_skipped_where_the_source_says_so_and_counted(bring, jsonl, tmp_path):
    from resprout.configs.schema import DocumentSource
    from resprout.tasks.acquire.stage import acquire_documents

    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (folder / "b.md").write_text("  \n")
    (folder / "c.md").write_text("Good.\n")
    with pytest.raises(BadInput, match=r"a\.txt: expected UTF-8, found byte 0xe9; .* by on_bad_row: skip"):
        bring(acquire_documents, DocumentSource(source="docs"))
    found = bring(acquire_documents, DocumentSource(source="docs", on_bad_row="skip"))
    assert [one["name"] for one in found] == ["c.md"]
    (metrics,) = tmp_path.rglob("metrics.json")
    assert json.loads(metrics.read_text()) == {"rows": 1, "repeated_rows": 0, "bad_rows": 2}
    jsonl("pages.jsonl", [{"page": "x"}, {"page": ""}, {"other": "y"}])
    settings = {"source": "pages.jsonl", "text": "{{ page }}"}
    with pytest.raises(BadInput, match=r"pages\.jsonl, row 2: the document is empty; .* by on_bad_row: skip"):
        bring(acquire_documents, DocumentSource(**settings))
    rows = bring(acquire_documents, DocumentSource(**settings, on_bad_row="skip"))
    assert [one["text"] for one in rows] == ["x"]


def test_documents_are_unpacked_and_are_data_where_a_format_says_so(bring, tmp_path):
    from resprout.configs.schema import DocumentSource
    from resprout.tasks.acquire.stage import acquire_documents

    folder = tmp_path / "docs"
    folder.mkdir()
    text = "# T\n\nOne.\n\nTwo.\n"
    (folder / "a.md.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"Three.\n\nFour.\n"))
    (folder / "rows.txt").write_text('{"text": "five"}\n{"text": "six"}\n')

    def found(source: str, **settings: str) -> list[tuple[str, str]]:
        data = DocumentSource(source=source, **settings)
        return [(one["markup"], one["text"]) for one in bring(acquire_documents, data)]

    documents = [("markdown", text), ("text", "Three.\n\nFour.\n")]
    assert found("docs/*.gz") == documents
    assert found("docs/a.md.gz") == documents[:1]
    assert len(found("docs")) == 3
    lines = [("text", "five"), ("text", "six")]
    assert found("docs/rows.txt", format="jsonl") == lines
    assert found("docs/r*.txt", format="jsonl") == lines
    assert len(found("docs/rows.txt")) == 1
    pictures = tmp_path / "one"
    pictures.mkdir()
    (pictures / "a.md").write_text(text)
    (pictures / "b.png").write_bytes(b"png")
    assert found("one", format="jsonl") == documents[:1]
    (folder / "a.md.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(BadInput, match=r"a\.md\.gz: expected gzip data, found a damaged or unfinished file"):
        found("docs")
