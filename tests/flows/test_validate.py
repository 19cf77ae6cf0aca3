"""`validate` looks inside: rows, tokenizers, pools, stores and sources elsewhere, each fault once."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from attacks import DEEP
from tiny_run import TWO_CHOICES, write_run

LIGHT = """
import sys
sys.argv = ["resprout", *{arguments!r}]
from resprout.flows.cli.main import main
try:
    main()
finally:
    sys.stderr.write("heavy " + ",".join(sorted({{"torch", "prefect", "mlflow"}} & set(sys.modules))))
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data and config; tests change copies and overrides, never these."""
    root = tmp_path_factory.mktemp("ground")
    write_run(root)
    return root


@pytest.fixture
def validate(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """`resprout validate <config> <arguments>` in this process: exit code, and all that it printed."""
    from resprout.flows.cli.main import main

    before = dict(os.environ)
    monkeypatch.setenv("RESPROUT_HOME", str(tmp_path / "home"))

    def call(*arguments: str, config: Path = ground / "run.yaml") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["resprout", "validate", str(config), *arguments])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    yield call
    os.environ.clear()
    os.environ.update(before)


def rows(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


CHAT = "{% for one in messages %}{{ one.role }} {{ one.content }} {% endfor %}"
"""A chat template, of which nothing is needed but that an answer's text follows the prompt's."""
ROW = {"instruction": "w5", "input": "", "output": "w6"}


def test_a_right_config_is_valid_and_nothing_is_left(
    ground: Path, tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    code, said = validate()
    assert (code, said) == (0, f"{ground / 'run.yaml'} is a valid run config (tiny)\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "lines", "sentence"),
    [
        ("select.pool.0", [ROW, {**ROW, "output": " "}], "pool.0: {path}, row 2: the output is empty"),
        ("select.pool.0", [{"question": "w5"}], "the row's columns are: question"),
        ("calibrate.text.0", [{"text": "w5"}, {"text": ""}], "text.0: {path}, row 2: the text is empty"),
        ("evaluate.perplexity.text.0", [{"body": "w5"}], "'text' is undefined; the row's columns are: body"),
        (
            "evaluate.zero_shot.tasks.0.data",
            [{"query": "w5", "a": "w6", "b": "w7", "label": 0}],
            "doc_to_text of task own uses question, which row 1 of {path} does not have; its columns are a,",
        ),
    ],
    ids=["empty answer", "other columns", "empty text", "no text", "columns of a task"],
)
def test_first_rows_go_through_templates_and_columns(
    key: str, lines: list[dict[str, Any]], sentence: str, tmp_path: Path, validate: Callable[..., Any]
) -> None:
    path = rows(tmp_path / "rows.jsonl", *lines)
    code, said = validate(f"{key}.source={path}")
    assert code == 2, said
    assert sentence.replace("{path}", path) in said


def test_where_all_first_rows_are_bad_there_is_no_skipping_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validate: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setattr("resprout.flows.validate.ROWS", 3)
    (tmp_path / "pool").mkdir()
    for number in range(9):
        rows(tmp_path / "pool" / f"train-{number}.jsonl", *[{**ROW, "output": f"w{number}"}] * 9)
    path, skip = tmp_path / "pool" / "train-*.jsonl", "select.pool.0.on_bad_row=skip"
    for good in ("select.method=random", "select.pool.0.where=output == 'w9'"):
        code, said = validate(f"select.pool.0.source={path}", skip, good)
        assert code == 0, said
    code, said = validate(f"select.pool.0.source={path}", skip, "select.pool.0.output='{{ messages }}'")
    assert code == 2, said
    assert "of the first rows not one is left; 27 were skipped by on_bad_row, the first: " in said
    assert "'messages' is undefined; the row's columns are: instruction, input, output" in said


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gsm9k", "unknown evaluation task 'gsm9k'; did you mean gsm8k?"),
        ("lm_eval:arc_chalenge", "lm-eval has no task arc_chalenge; did you mean lm_eval:arc_challenge?"),
        ("lm_eval:humaneval", "lm_eval:humaneval runs the code that the model writes"),
        ("code.yaml", "PATH runs Python code (doc_to_target: lm_eval:needing.answer); take it out, or read"),
        ("needs.yaml", "lm_eval:needing.answer needs the package no_such_package, which is not installed"),
    ],
)
def test_a_task_that_cannot_be_had(
    name: str,
    sentence: str,
    offline: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    validate: Callable[..., tuple[int, str]],
) -> None:
    trust = ["evaluate.trust_task_code=true"] if name == "needs.yaml" else []
    if name in ("code.yaml", "needs.yaml"):
        monkeypatch.setattr("resprout.tasks.evaluate.lm_eval_tasks.folder", lambda: tmp_path)
        monkeypatch.setattr("resprout.tasks.evaluate.lm_eval_tasks.MODULES", "")
        (tmp_path / "needing.py").write_text("import no_such_package\n")
        monkeypatch.syspath_prepend(tmp_path)
        name = str(tmp_path / name)
        sentence = sentence.replace("PATH", name)
        Path(name).write_text(
            "task: x\noutput_type: generate_until\ndoc_to_text: '{{question}}'\n"
            "doc_to_target: lm_eval:needing.answer\nmetric_list: [{metric: exact_match}]\n"
        )
    path = rows(tmp_path / "rows.jsonl", {"question": "w5"})
    task = f"{{task: '{name}', data: {{source: {path}}}}}"
    given = [*trust, *(["--offline"] if offline else [])]
    code, said = validate(f"evaluate.suites=[{{tasks: [{task}]}}]", *given)
    assert code == 2
    assert f"evaluate.suites.0.tasks.0.task: {sentence}" in said
    assert "tasks.0.data" not in said


TOUCH = "{{ cycler.__init__.__globals__.os.system('touch MADE') }}"
RANKING = {"metadata": {"ranking": "pairwise"}, "doc_to_choice": ["A", "B"], "doc_to_target": 0}
BIG = "{{ 'a' * 10**11 }}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"doc_to_text": TOUCH},
            "data: doc_to_text of task x fails on row 1 of PATH: the template .*Security",
        ),
        (
            {"doc_to_text": BIG},
            "doc_to_text of task x fails on .* more than 4 GiB of memory; mend the template",
        ),
        ({"doc_to_text": "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4}, "did not end within 1 s"),
        ({"doc_to_text": "{{" + "(" * 5000 + "a" + ")" * 5000 + "}}"}, "doc_to_text .*RecursionError"),
        ({"doc_to_text": "{{ question"}, "doc_to_text .*TemplateSyntaxError"),
        ({"doc_to_text": "{{ 5 + question }}"}, "doc_to_text .*fails on row 1 of .*TypeError"),
        (
            {"doc_to_choice": "{{ [a, c] }}"},
            "data: doc_to_choice of task x uses c, which row 1 of PATH does",
        ),
        ({"doc_to_choice": BIG}, "doc_to_choice of task x fails on .* more than 4 GiB"),
        ({"doc_to_target": TOUCH}, "doc_to_target .*Security"),
        ({"description": TOUCH}, "description .*Security"),
        ({"gen_prefix": TOUCH}, "gen_prefix .*Security"),
        ({"fewshot_config": {"doc_to_text": TOUCH}}, "examples: doc_to_text .*Security"),
        (
            {"fewshot_config": {"doc_to_text": "{{ c }}"}},
            "examples: doc_to_text of task x uses c, which row 1",
        ),
        (
            {**RANKING, "doc_to_text": "{{ text_a }}" + TOUCH},
            "doc_to_text .*Security",
        ),
        (
            {**RANKING, "doc_to_text": "{{ text }}"},
            "uses text, which row 1 .* text_a",
        ),
        ({"description": "{{ top }}: {{ nested.b }} {{ none is none }}"}, None),
        ({**RANKING, "doc_to_text": "{{ text_a }} {{ text_b }}"}, None),
    ],
)
def test_templates_of_a_task_go_through_first_rows_within_limits(
    settings: dict[str, Any],
    sentence: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    validate: Callable[..., tuple[int, str]],
) -> None:
    monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 0.9)
    own, made = tmp_path / "own.yaml", tmp_path / "made"
    settings = {**TWO_CHOICES, "num_fewshot": 1, **settings}
    own.write_text(yaml.safe_dump(settings, width=9999).replace("MADE", str(made)))
    row = {"question": "w5", "a": "w6", "b": "w7", "label": 0}
    row |= {"qid": 1, "query": "q", "docid": 1, "text": "t", "relevance": 1}
    path = rows(
        tmp_path / "rows.jsonl", *(row | {"top": "t", "nested": {name: 1}, "none": None} for name in "ab")
    )
    shown = rows(tmp_path / "shown.jsonl", row, row)
    task = f"{{task: {own}, name: x, data: {{source: {path}}}, examples: {{source: {shown}}}}}"
    code, said = validate(f"evaluate.suites=[{{tasks: [{task}]}}]")
    assert not made.exists()
    assert code == (0 if sentence is None else 2), said
    if sentence is not None:
        assert re.search(r"evaluate\.suites\.0\.tasks\.0\..*" + sentence.replace("PATH", path), said), said


def test_rows_of_a_task_that_lm_eval_processes_have_other_columns(
    tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    row = {"activity_label": "x", "ctx_a": "w5", "ctx_b": "w6", "endings": ["w7", "w8"], "label": "0"}
    path = rows(tmp_path / "rows.jsonl", row)
    task = f"{{task: 'lm_eval:hellaswag', data: {{source: {path}}}}}"
    code, said = validate(f"evaluate.suites=[{{tasks: [{task}]}}]")
    assert code == 0, said


def test_a_task_file_with_a_setting_of_another_form(
    tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({**TWO_CHOICES, "num_fewshot": "five", "metadata": {1: 2}}))
    path = rows(tmp_path / "rows.jsonl", {"question": "w5", "a": "w6", "b": "w7", "label": 0})
    tasks = f"evaluate.suites=[{{tasks: [{{task: {own}, name: x, data: {{source: {path}}}}}]}}]"
    for sentence in ("has a key of type int under metadata; put", "has num_fewshot 'five'; give a whole"):
        code, said = validate(tasks)
        assert code == 2, said
        assert f"evaluate.suites.0.tasks.0.task: {own} {sentence}" in said
        own.write_text(own.read_text().replace("1: 2", "'1': 2"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "quantize.formats holds gguf:F16, but a GGUF file cannot hold a tokenizer of type WordLevel"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "quantize.formats holds gguf:F16, but the rotary embedding of config.json is scaled by 'dynamic'",
        ),
    ],
)
def test_a_model_that_gguf_cannot_hold_is_found_before_a_run(
    settings: dict[str, Any],
    sentence: str,
    ground: Path,
    tmp_path: Path,
    validate: Callable[..., tuple[int, str]],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(ground / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | settings))
    code, said = validate(f"model.source={model}", "quantize.formats=[gguf:F16]", "--offline")
    assert code == 2
    assert sentence in said


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("model/model.safetensors", (2).to_bytes(8, "little") + b"[]", "is no complete safetensors file"),
        ("model/config.json", b'{"model_type": NaN}', "config.json is not valid JSON"),
        ("model/tokenizer_config.json", DEEP, "tokenizer_config.json is not valid JSON"),
        ("model/tokenizer.json", DEEP, "tokenizer.json is not valid JSON"),
        ("model/tokenizer_config.json", b"[]", "tokenizer_config.json holds no object but a list"),
        ("model/special_tokens_map.json", b"[]", "special_tokens_map.json holds no object but a list"),
        ("model/config.json", b'{"rope_theta": 1e999}', "config.json is not valid JSON"),
        ("home/mlflow.db", b"no database", "mlflow.db is no SQLite database"),
        ("home/mlflow.db", b"SQLite format 3\0" + bytes(84), "mlflow.db is no SQLite database"),
    ],
)
def test_damaged_files_that_a_run_would_end_at(
    name: str, data: bytes, sentence: str, ground: Path, tmp_path: Path, validate: Callable[..., Any]
) -> None:
    shutil.copytree(ground / "model", tmp_path / "model")
    (tmp_path / "home").mkdir()
    (tmp_path / name).write_bytes(data)
    code, said = validate(f"model.source={tmp_path / 'model'}")
    assert (code, said.count(sentence)) == (2, 1), said


def test_more_examples_than_there_are(tmp_path: Path, validate: Callable[..., tuple[int, str]]) -> None:
    task = {"question": "w5", "a": "w6", "b": "w7", "label": 0}
    path = rows(tmp_path / "rows.jsonl", *[task] * 12)

    def of(few: int, more: str = "") -> tuple[int, str]:
        task = f"{{task: own.yaml, few_shot: {few}, data: {{source: {path}}}{more}}}"
        return validate("evaluate.zero_shot=null", f"evaluate.suites=[{{tasks: [{task}]}}]")

    shown = f", examples: {{source: {path}}}"
    sentence = "suites.0.tasks.0.few_shot: evaluation task own has few_shot {}, but each item has {} examples"
    code, said = of(200)
    assert code == 2
    assert sentence.format(200, 11) in said
    assert of(11)[0] == 0
    assert of(12, shown)[0] == 0
    assert sentence.format(13, 12) in of(13, shown)[1]


def test_a_condition_and_a_split_that_leave_nothing(
    tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    code, said = validate("calibrate.text.0.where=source == 'none'")
    assert code == 2
    assert "calibrate.text.0: calibration.jsonl: no row is left of 20: where \"source == 'none'\"" in said
    many = rows(
        tmp_path / "many.jsonl", *({"text": f"w{index}", "kept": index > 1500} for index in range(2000))
    )
    assert validate(f"calibrate.text.0.source={many}", "calibrate.text.0.where=kept")[0] == 0, "not known yet"


def test_a_model_comes_with_tokenizer_and_chat_template(
    ground: Path, tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    code, said = validate("select.template=chat")
    assert code == 2
    assert "select.template: template is chat but the tokenizer has no chat template" in said
    code, said = validate("select.targets=self", "select.answers.template=chat")
    assert code == 2
    assert "select.answers.template: template is chat but the tokenizer has no chat template" in said

    chatty = Path(shutil.copytree(ground / "model", tmp_path / "chatty"))
    (chatty / "chat_template.jinja").write_text(CHAT)
    code, said = validate("select.template=chat", f"model.source={chatty}")
    assert code == 0, said
    (chatty / "chat_template.jinja").write_text(CHAT + "é", encoding="latin-1")
    code, said = validate("select.template=chat", f"model.source={chatty}")
    assert code == 2
    assert f"select.template: {chatty}: chat_template.jinja is not UTF-8 at byte {len(CHAT)}" in said

    mute = shutil.copytree(ground / "model", tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    code, said = validate(f"model.source={mute}")
    assert code == 2
    assert f"model.source: {mute} holds no tokenizer (tokenizer.json" in said


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ messages }}", "chat template writes the prompt differently once an answer"),
        ("{{ messages[0].content + 1 }}", "chat template does not render a row (TypeError"),
        ("{% for one in range(10 ** 9) %}{% endfor %}", "chat template does not render a row (OverflowError"),
        ("{{ bos_token + eos_token }}" + CHAT, None),
        (
            "{{ pad_token + 'x' }}" + CHAT,
            "chat template does not render a row (UndefinedError: 'pad_token' is",
        ),
    ],
    ids=["other prompt", "wrong type", "endless", "tokens", "no such token"],
)
@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_first_rows_go_through_the_chat_template(
    template: str,
    sentence: str | None,
    place: str,
    ground: Path,
    tmp_path: Path,
    validate: Callable[..., Any],
) -> None:
    """As `pool` renders them, with the special tokens that the tokenizer's settings name."""
    folder = Path(shutil.copytree(ground / "model", tmp_path / "chatty"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    settings.pop("pad_token", None)
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": template}))
    else:
        named = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": template}]
        settings["chat_template"] = named
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code, said = validate("select.template=chat", f"model.source={folder}")
    assert code == (2 if sentence else 0), said
    assert (f"select.template: the tokenizer's {sentence}" if sentence else "is a valid run config") in said


@pytest.mark.parametrize(
    ("has", "template", "sentence"),
    [
        (False, None, "holds no tokenizer"),
        (True, None, "tokenizer has no chat template"),
        (
            True,
            "{{ bos_token + eos_token }}{{ messages }}",
            "chat template writes the prompt differently once",
        ),
        (True, "{{ bos_token + pad_token }}" + CHAT, "(UndefinedError: 'pad_token' is undefined)"),
        (True, "{{ bos_token + eos_token }}" + CHAT, "is a valid run config"),
    ],
    ids=["no tokenizer", "no template", "other prompt", "no such token", "both"],
)
def test_a_gguf_file_tells_of_both_in_its_header(
    has: bool, template: str | None, sentence: str, tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    if has:
        writer.add_token_list([f"w{index}" for index in range(50)])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((50, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code, said = validate(f"model.source={tmp_path / 'model.gguf'}", "select.template=chat")
    assert code == (0 if "valid" in sentence else 2), said
    assert sentence in said


def test_a_source_file_where_the_run_begins_with_a_folder(validate: Callable[..., tuple[int, str]]) -> None:
    code, said = validate(
        'quantize={"formats": ["compressed-tensors:W8A16"]}', 'compare={"baselines": ["source_file"]}'
    )
    assert code == 2
    assert "compare.baselines: source_file is the GGUF file that a run begins with, but model is none" in said


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("calibrate", "calibrate.samples times seq_len_tokens is 128"),
        ("evaluate.perplexity", "evaluate.perplexity.window_tokens is 32"),
    ],
)
def test_text_that_cannot_fill_what_is_asked(
    key: str, asked: str, tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    path = rows(tmp_path / "short.jsonl", {"text": "w5 w6 w7"}, {"text": "w8 w9"})
    code, said = validate(f"{key}.text.0.source={path}")
    assert code == 2
    assert f"{key}.text: the text has at most 19 tokens, its bytes, but {asked}" in said


def test_a_pool_too_small_for_its_clusters_or_its_budget(
    tmp_path: Path, validate: Callable[..., tuple[int, str]]
) -> None:
    path = rows(tmp_path / "few.jsonl", *({**ROW, "output": f"w{index}"} for index in range(5)))
    code, said = validate(f"select.pool.0.source={path}")
    assert code == 2
    assert "select.pool: the pool has 5 rows, which are too few for paser.clusters: 3; it needs 6" in said
    code, said = validate("select.budget_ratio=null", "select.budget_tokens=1000000")
    assert code == 2
    assert "select.budget_tokens is 1000000 but the pool holds at most 7680 tokens: 60 rows of" in said
    code, said = validate("select.budget_ratio=null", "select.budget_rows=61")
    assert code == 2
    assert "select.budget_rows is 61 but the pool holds at most 60 rows" in said
    code, said = validate("select.method=stratified", "select.pool.0.category=''")
    assert code == 2
    assert "select.pool: select asks for stratified rows, but none of the pool has a category" in said
    (tmp_path / "a.txt").write_text("One two three.")
    documents = f"select.documents=[{{source: {tmp_path / 'a.txt'}}}]"
    code, said = validate(documents)
    assert code == 2
    assert "a row of select.documents takes up to 176 tokens and its prompt" in said
    # How many rows documents add is not known.
    shorter = "select.prepare={passage_tokens: 64, context_tokens: 16}"
    code, said = validate(f"select.pool.0.source={path}", documents, shorter)
    assert code == 0, said


def test_the_first_documents_are_looked_at_and_none_is_held(
    tmp_path: Path, validate: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resprout.flows import validate as module

    folder, read = tmp_path / "docs", list[str]()
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"Document {number}.")
    (folder / "7.txt").write_text("")
    whole = module.document_items

    def counted(*given: Any) -> Iterator[Any]:
        for item in whole(*given):
            read.append(item.row["name"])
            yield item

    monkeypatch.setattr(module, "document_items", counted)
    monkeypatch.setattr(module, "ROWS", 3)
    given = f"select.documents=[{{source: {folder}}}]"
    shorter = "select.prepare={passage_tokens: 64, context_tokens: 16}"
    code, said = validate(given, shorter)
    assert (code, read) == (0, [f"{number}.txt" for number in range(4)]), said
    monkeypatch.setattr(module, "ROWS", 8)
    code, said = validate(given, shorter)
    assert code == 2
    assert "7.txt: the document is empty" in said


def test_a_store_that_cannot_be_written(validate: Callable[..., tuple[int, str]]) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, the folder that not even root can write")
    code, said = validate("infra.store.uri=/proc/store")
    assert code == 2
    assert "infra.store: /proc cannot be written" in said


def test_a_bucket_that_cannot_be_written(
    s3: Any, validate: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.settings("validate").items():
        monkeypatch.setenv(f"RESPROUT_INFRA__STORE__{name.upper()}", value)
    code, said = validate()
    assert code == 0, said
    code, said = validate("infra.store.uri=s3://no-such-bucket/x")
    assert code == 2
    assert "infra.store: there is no bucket s3://no-such-bucket" in said
    code, said = validate("calibrate.text.0.source=s3://no-such-bucket/x.jsonl")
    assert code == 2
    assert "calibrate.text.0.source: there is no bucket s3://no-such-bucket" in said


@pytest.mark.parametrize(
    ("key", "address"),
    [("model.source", "hf://org/tiny"), ("calibrate.text.0.source", "hf-dataset://org/data#train")],
)
def test_without_a_network_the_sentence_names_host_and_model(key: str, address: str, ground: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "resprout.flows.cli.main", "validate", "run.yaml", f"{key}={address}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ground,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
        timeout=120,
    )
    assert done.returncode == 2, done.stdout
    assert f"{key}: http://127.0.0.1:9 cannot be reached for '{address}'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_that_no_registry_holds(tmp_path: Path, validate: Callable[..., tuple[int, str]]) -> None:
    code, said = validate("model.source=models:/tiny@candidate")
    assert code == 2
    assert f"model.source: there is no models:/tiny@candidate: nothing is registered in {tmp_path}" in said


@pytest.mark.parametrize("offline", [False, True])
def test_a_name_on_the_hub_and_a_folder_without_a_model(
    offline: bool, validate: Callable[..., tuple[int, str]]
) -> None:
    more = ["--offline"] if offline else []
    code, said = validate("model.source=Qwen/Qwen3-0.6B", *more)
    assert code == 2
    assert "model.source: there is no Qwen/Qwen3-0.6B (" in said
    assert said.endswith("did you mean hf://Qwen/Qwen3-0.6B?\n")
    code, said = validate("model.source=model/weights", *more)
    assert code == 2
    assert "hf://" not in said, "the folder before the slash is there"
    code, said = validate("model.source=/etc", *more)
    assert code == 2
    assert "model.source: /etc holds no config.json and no .gguf file, so it is no model" in said


def test_each_fault_is_told_once(validate: Callable[..., tuple[int, str]]) -> None:
    gone = ("calibrate.text.0.source=gone.jsonl", "evaluate.perplexity.text.0.source=gone.jsonl")
    code, said = validate(*gone, "select.pool.0.source=missing.jsonl")
    assert code == 2
    assert said.count("there is no gone.jsonl") == 1
    assert "calibrate.text.0.source, evaluate.perplexity.text.0.source: there is no gone.jsonl" in said
    assert said.count("there is no missing.jsonl") == 1

    code, said = validate("select.paser.clusters=1")
    assert code == 2
    assert said.count("select.paser.clusters") == 1
    assert "input should be greater than or equal to 2, or input should be 'auto' (given: 1)" in said


def test_offline_says_what_it_did_not_open(tmp_path: Path, validate: Callable[..., tuple[int, str]]) -> None:
    path = rows(tmp_path / "rows.jsonl", {"body": "no text"})
    code, said = validate(f"calibrate.text.0.source={path}", "model.source=hf://org/tiny@main", "--offline")
    assert code == 0
    assert (
        f"not opened: hf://org/tiny@main, {path}, evaluation.jsonl, pool.jsonl, task.jsonl, the store" in said
    )


def test_it_takes_seconds_and_imports_nothing_heavy(ground: Path, tmp_path: Path) -> None:
    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    began = used()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=["validate", str(ground / "run.yaml")])],
        capture_output=True, text=True, check=False, env={**os.environ, "RESPROUT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "heavy "
    assert used() - began < 6.0


@pytest.mark.parametrize(
    ("overrides", "key", "sentence"),
    [
        (["export.formats=[hf:x]"], "export.formats", "has no types; give hf, not hf:X"),
        (["export.formats=[hf_layouts:x]"], "export.formats", "give hf_layouts, not hf_layouts:X"),
        (["export.formats=[nope]"], "export.formats", "unknown export format 'nope'. Known: "),
        (
            ["quantize.formats=[compressed-tensors:W8A16]", "prune.layout=per_layer", "prune.repair=none"],
            "quantize.formats",
            "prune.layout is per_layer; give layout: uniform, or a format that holds it, say gguf:Q4_K_M or "
            "onnx:F32",
        ),
        (
            ["quantize.formats=[gguf:q4_k_m]", "prune.round_to=auto"],
            "prune.target",
            "round_to: auto is 256 here because gguf:Q4_K_M takes 256 weights of a row together; gguf:Q4_0 "
            "takes 32",
        ),
    ],
)
def test_a_format_that_does_not_fit_is_blamed_on_the_key_that_names_it(
    overrides: list[str], key: str, sentence: str, validate: Callable[..., tuple[int, str]]
) -> None:
    code, said = validate(*overrides, "register=null")
    assert code == 2
    assert sentence in " ".join(said.split())
    assert f"{key}: " in said
    assert ("export.formats" in said) == (key == "export.formats")
