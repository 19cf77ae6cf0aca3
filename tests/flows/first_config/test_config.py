"""The config that is drafted validates, and its values follow from the model and the files."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from resprout.configs.errors import BadInput
from resprout.configs.load import load_data, parsed
from resprout.configs.schema import RunConfig
from resprout.flows.check import check
from resprout.flows.first_config import data, recovery, texts
from resprout.flows.first_config.config import Draft, draft
from resprout.flows.first_config.goal import parse_goal
from resprout.flows.validate import probe
from resprout.tasks.gguf.types import FileType, GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.llama_cpp.process import LlamaCpp
from resprout.tasks.models.load import load_tokenizer, save_model
from tiny_models import tiny_model, write_byte_tokenizer, write_tiny_folder
from tiny_run import words

CHAT = "{% for one in messages %}{{ one.role }} {{ one.content }} {% endfor %}"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and files as users have them; nobody changes them."""
    root = tmp_path_factory.mktemp("ground")
    for model_type in ("llama", "gpt2", "opt", "mixtral"):
        write_tiny_folder(root / model_type, model_type)
    odd = {"intermediate_size": 149, "hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 5}
    write_tiny_folder(root / "odd", "llama", **odd, head_dim=12, max_position_embeddings=100)
    lines(root / "text.jsonl", [{"text": words(120, seed)} for seed in range(40)])
    lines(root / "body.jsonl", [{"id": seed, "body": words(120, seed)} for seed in range(40)])
    lines(root / "long.jsonl", [{"text": words(400, seed)} for seed in range(300)])
    (root / "passages.txt").write_text("\n\n".join(words(120, seed) for seed in range(40)))
    (root / "one.txt").write_text(words(900, 1))
    lines(root / "pool.jsonl", [{"instruction": words(6, i), "output": words(8, i + 500)} for i in range(60)])
    rows = [{"question": words(6, index), "answer": words(10, index + 99)} for index in range(80)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "pairs.parquet")
    cells = [f"{words(5, index)},{words(9, index + 3)}" for index in range(30)]
    (root / "pairs.csv").write_text("\n".join(["prompt,completion", *cells]))
    turns = [("user", 0), ("assistant", 50)]
    chats = [[{"role": role, "content": words(9, i + more)} for role, more in turns] for i in range(90)]
    lines(root / "chats.jsonl", [{"messages": chat} for chat in chats])
    lines(root / "few.jsonl", [{"prompt": words(5, i), "response": words(9, i + 50)} for i in range(3)])
    return root


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def make(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Draft]]:
    """Draft a config in a folder of its own, from the folder of the files; no quickstart is here."""
    before = dict(os.environ)
    monkeypatch.setenv("RESPROUT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(ground)
    (tmp_path / "out").mkdir()

    def call(model: str, text: str | None = None, *pools: str | None, goal: str | None = None) -> Draft:
        given = [one for one in pools if one is not None]
        return draft(model, text, given, parse_goal(goal) if goal else None, tmp_path / "out" / "my.yaml")

    yield call
    os.environ.clear()
    os.environ.update(before)


def config_of(made: Draft) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load(made.text))


@pytest.mark.parametrize(
    "pool", [None, "pool.jsonl", "pairs.parquet", "pairs.csv", "chats.jsonl", "few.jsonl"]
)
@pytest.mark.parametrize(
    "text", [None, "text.jsonl", "body.jsonl", "passages.txt", "one.txt", "pairs.parquet"]
)
def test_what_is_drafted_validates(
    text: str | None, pool: str | None, make: Callable[..., Draft], tmp_path: Path
) -> None:
    if text is None and pool is None:
        return
    made = make("odd", text, pool)
    path = tmp_path / "out" / "my.yaml"
    check(load_data(parsed(made.text), path), probe)
    config = config_of(made)
    assert (config.select is not None) == (pool is not None)
    assert all(
        line in " ".join(made.text.replace("#", "").split()) for one in made.sections for line in one.why
    )
    # Relative paths begin at the folder of the config, whatever the current one was.
    assert config.model.source == os.path.relpath("odd", path.parent)
    assert (path.parent / config.calibrate.text[0].source).is_file()


@pytest.mark.parametrize("goal", [None, "20 % smaller", "150kB"])
@pytest.mark.parametrize("model", ["llama", "gpt2", "opt", "odd", "mixtral"])
def test_every_model_gets_a_config(model: str, goal: str | None, make: Callable[..., Draft]) -> None:
    if (model, goal) == ("mixtral", "150kB"):
        goal = "400kB"
    config = config_of(make(model, "text.jsonl", "pool.jsonl", goal=goal))
    assert config.prune.method == ("magnitude" if model == "mixtral" else "recommended")
    longest = 100 if model == "odd" else 256
    assert config.calibrate.seq_len_tokens <= longest
    assert config.evaluate.perplexity.window_tokens <= longest
    assert config.select is not None
    assert config.select.max_len_tokens == longest
    assert config.measure is not None
    assert config.measure.prefill_tokens + config.measure.decode_tokens == longest
    assert config.model.dtype == ("bfloat16" if goal and "B" in goal else config.model.dtype)


def test_lengths_and_samples_follow_the_text(make: Callable[..., Draft]) -> None:
    long = config_of(make("llama", "long.jsonl"))
    assert (long.calibrate.method, long.calibrate.samples, long.calibrate.seq_len_tokens) == ("cola", 64, 256)
    assert long.evaluate.perplexity.window_tokens == 256
    short = config_of(make("llama", "text.jsonl"))
    assert short.calibrate.method == "random"
    assert short.calibrate.samples * short.calibrate.seq_len_tokens < 40 * 120
    assert short.evaluate.perplexity.window_tokens < 256


def test_a_part_of_the_documents_is_held_out(make: Callable[..., Draft]) -> None:
    config = config_of(make("llama", "text.jsonl"))
    (calibration,), (judged,) = config.calibrate.text, config.evaluate.perplexity.text
    assert calibration.source == judged.source
    assert judged.hash_percent == (0, calibration.hash_percent[0])
    assert calibration.hash_percent[1] == 100
    assert "TOO FEW DOCUMENTS" in make("llama", "one.txt").text


def test_of_a_large_file_no_more_is_claimed_than_was_seen(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("ROWS", 20), ("CHARACTERS", 5000)):
        with monkeypatch.context() as patched:
            patched.setattr(data, name, most)
            made = make("llama", "text.jsonl", "pool.jsonl")
            assert re.search(r"# more than \d+ different documents, more than about", made.text)
    assert "more than about" not in make("llama", "text.jsonl", "pool.jsonl").text


def test_no_row_of_a_pool_is_trained_on_and_held_out(make: Callable[..., Draft]) -> None:
    config = config_of(make("llama", None, "chats.jsonl"))
    assert config.select is not None
    (rows,), (judged,) = config.select.pool, config.evaluate.perplexity.text
    assert rows.hash_percent[0] == judged.hash_percent[1]
    assert rows.hash_of == judged.hash_of == rows.instruction


def test_what_is_judged_is_never_learned_from(make: Callable[..., Draft]) -> None:
    assert config_of(make("llama", "one.txt")).recover is None
    assert "no text beside what is held out, and no --pool" in make("llama", "one.txt").text
    config = config_of(make("llama", "text.jsonl"))
    assert config.recover is not None
    (learned,), (judged,) = config.recover.text, config.evaluate.perplexity.text
    assert learned.hash_percent[0] == judged.hash_percent[1]
    rows_alone = config_of(make("llama", None, "chats.jsonl")).recover
    assert rows_alone is not None
    assert not rows_alone.text


def test_weights_that_do_not_fit_in_training_get_adapters(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resprout.flows.first_config.recovery.total_memory", lambda device: 1_000_000_000)
    config = config_of(make("llama", "text.jsonl"))
    assert config.recover is not None
    assert (config.recover.method, config.recover.distill_weight) == ("lora", 1.0)
    assert "adapters, because training all" in make("llama", "text.jsonl").text


@pytest.mark.parametrize(("goal", "weight", "rate"), [("5 %", 1.0, 1e-4), ("20 %", 0.5, 2e-4)])
def test_rate_and_weight_follow_the_cut(
    goal: str, weight: float, rate: float, make: Callable[..., Draft]
) -> None:
    recover = config_of(make("llama", "text.jsonl", goal=goal)).recover
    assert recover is not None
    assert (recover.method, recover.distill_weight, recover.learning_rate) == ("distill", weight, rate)


def test_a_chat_template_that_renders_the_rows_is_taken(ground: Path, make: Callable[..., Draft]) -> None:
    def template(model: str) -> str:
        select = config_of(make(model, "text.jsonl", "chats.jsonl")).select
        assert select is not None
        return select.template

    assert template("llama") == "alpaca"
    write_tiny_folder(ground / "chatty")
    (ground / "chatty" / "chat_template.jinja").write_text(CHAT)
    assert template("chatty") == "chat"
    (ground / "chatty" / "chat_template.jinja").write_text("{{ messages | length }}")
    assert template("chatty") == "alpaca"


def test_a_licence_is_taken_from_the_source(ground: Path, make: Callable[..., Draft]) -> None:
    write_tiny_folder(ground / "licensed")
    assert "no licence: the source states none" in make("licensed", "text.jsonl").text
    (ground / "licensed" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert config_of(make("licensed", "text.jsonl")).model.licence == "mit"


def test_pickled_weights_are_taken_where_that_is_asked(
    ground: Path, make: Callable[..., Draft], tmp_path: Path
) -> None:
    folder = write_tiny_folder(ground / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="has pickled weights only"):
        make("pickled", "text.jsonl")
    made = draft("pickled", "text.jsonl", (), None, tmp_path / "out" / "my.yaml", allow_pickle=True)
    assert config_of(made).model.allow_pickle


def test_a_pool_that_is_too_small_for_paser_is_drawn_at_random(make: Callable[..., Draft]) -> None:
    few, many = (config_of(make("llama", "text.jsonl", pool)).select for pool in ("few.jsonl", "pool.jsonl"))
    assert few is not None
    assert many is not None
    assert (few.method, few.budget_ratio) == ("random", 1.0)
    assert (many.method, many.paser.clusters, many.budget_ratio) == ("paser", 6, 0.5)


def test_all_rows_of_a_large_pool_can_be_chosen_within_what_is_trained(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "MOST_TRAINED", 1000)
    select = config_of(made := make("llama", "text.jsonl", "pool.jsonl")).select
    assert select is not None
    # Four fifths of what is trained on, where text is beside them.
    assert (select.pool[0].limit, select.budget_tokens, select.budget_ratio) == (None, 800, None)
    assert "60 different rows; recovery trains on 800 of their tokens" in made.text
    alone = config_of(made := make("llama", None, "pool.jsonl"))
    assert alone.select is not None
    assert alone.recover is not None
    assert (alone.select.budget_tokens, alone.recover.rows_weight, alone.recover.tokens) == (1000, None, 1000)
    assert "recovery trains on 1,000 of their tokens" in made.text


@pytest.mark.parametrize(
    ("rows", "text", "expected"),
    [
        (1000, 2000, (1000, 2000)),
        (5_000_000, 9_000_000, (8000, 2000)),
        (5_000_000, 500, (9500, 500)),
        (3000, 9_000_000, (3000, 7000)),
        (9000, 9000, (8000, 2000)),
        (256_000, float("inf"), (8000, 2000)),
        (5_000_000, 0, (10_000, 0)),
        (0, 5_000_000, (0, 10_000)),
    ],
)
def test_rows_are_the_larger_part_where_they_are_enough(
    rows: float, text: float, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "MOST_TRAINED", 10_000)
    assert recovery._shares(rows, text) == expected


def test_what_is_said_of_rows_and_text_is_what_the_weights_give(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more text than rows, the rows would be a small part without weights."""
    monkeypatch.setattr(recovery, "MOST_TRAINED", 2000)
    config = config_of(made := make("llama", "long.jsonl", "pool.jsonl"))
    assert config.select is not None
    assert config.recover is not None
    (text,) = config.recover.text
    assert (config.recover.tokens, config.recover.rows_weight, text.weight) == (2000, 0.8, 0.2)
    assert config.select.budget_tokens == 1600
    said = " ".join(made.text.replace("#", "").split())
    assert "recovery trains on 1,600 of their tokens" in said
    assert "of 2,000 tokens 80.0% are rows (rows_weight) and the rest text (weight)" in said
    # The three rows are seen once, and not until they are four fifths.
    few = config_of(make("llama", "long.jsonl", "few.jsonl"))
    assert few.select is not None
    assert few.recover is not None
    assert few.recover.rows_weight is not None
    assert (few.select.budget_ratio, few.recover.rows_weight < 0.15) == (1.0, True)
    assert few.recover.rows_weight + (few.recover.text[0].weight or 0) == pytest.approx(1)
    # Where all is trained on once, no weights are needed.
    monkeypatch.setattr(recovery, "MOST_TRAINED", 10**9)
    whole = config_of(make("llama", "long.jsonl", "pool.jsonl")).recover
    assert whole is not None
    assert (whole.epochs, whole.tokens, whole.rows_weight, whole.text[0].weight) == (1, None, None, None)


def test_each_of_several_pools_has_its_columns(make: Callable[..., Draft]) -> None:
    made = make("llama", "text.jsonl", "chats.jsonl", "pairs.parquet")
    select = config_of(made).select
    assert select is not None
    assert [(Path(one.source).name, one.instruction, one.output) for one in select.pool] == [
        ("chats.jsonl", "{{ messages | first_question }}", "{{ messages | first_answer }}"),
        ("pairs.parquet", "{{ question }}", "{{ answer }}"),
    ]
    assert "170 different rows" in made.text
    config = config_of(make("llama", None, "chats.jsonl", "pairs.parquet"))
    assert config.select is not None
    judged = config.evaluate.perplexity.text
    assert [one.source for one in judged] == [one.source for one in config.select.pool]
    for pool, text in zip(config.select.pool, judged, strict=True):
        assert pool.hash_percent[0] == text.hash_percent[1]
        assert pool.hash_of == text.hash_of == pool.instruction


def test_bad_rows_are_counted_and_end_no_run(
    ground: Path, make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": words(6, i), "output": words(8, i + 500)} for i in range(60)]
    bad = ['{"instruction": "w5", "output": ""}\n', '{"instruction": \n']
    good = [json.dumps(row) + "\n" for row in rows]
    (ground / "rough.jsonl").write_text("".join([good[0], *bad, *good[1:]]))
    made = make("llama", None, "rough.jsonl")
    config = config_of(made)
    assert config.select is not None
    sources = [*config.select.pool, *config.calibrate.text, *config.evaluate.perplexity.text]
    assert {one.on_bad_row for one in sources} == {"skip"}
    said = " ".join(made.text.replace("#", "").split())
    assert "left out and counted (on_bad_row: skip); 2, the first: " in said
    assert "rough.jsonl, line 3: expected JSON" in said
    # Behind the first rows there may be more of them.
    monkeypatch.setattr(data, "ROWS", 50)
    (ground / "rough.jsonl").write_text("".join([good[0], "\n", bad[0], *good[1:]]))
    said = " ".join(make("llama", None, "rough.jsonl").text.replace("#", "").split())
    assert "(on_bad_row: skip); so far 1, the first: " in said
    assert "rough.jsonl, row 3: the output is empty" in said


def test_of_a_folder_and_of_a_pattern_it_is_said_what_is_read(
    ground: Path, make: Callable[..., Draft], tmp_path: Path
) -> None:
    rows = [{"instruction": words(6, i), "output": words(8, i + 500)} for i in range(60)]
    (ground / "shards").mkdir()
    for number in range(3):
        lines(ground / "shards" / f"train-{number}.jsonl", rows[20 * number : 20 * number + 20])
    lines(ground / "shards" / "test-0.jsonl", rows[:5])
    (ground / "shards" / "dataset_info.json").write_text("{}")
    made = make("llama", "text.jsonl", "shards")
    said = " ".join(made.text.replace("#", "").split())
    assert (
        "read: test-0.jsonl, train-0.jsonl, train-1.jsonl, train-2.jsonl; passed over: dataset_info.j" in said
    )
    made = make("llama", "text.jsonl", "shards/train-*.jsonl")
    select = config_of(made).select
    assert select is not None
    assert select.pool[0].source == os.path.relpath(ground / "shards" / "train-*.jsonl", tmp_path / "out")
    assert "60 different rows" in made.text
    assert "read: train-0.jsonl, train-1.jsonl, train-2.jsonl; passed over: nothing" in made.text


def test_of_a_pool_that_is_not_opened_a_sample_is_drawn(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = data.find
    monkeypatch.setattr(
        data, "find", lambda source, *rest: find(source, *rest) if "pool" not in source else None
    )
    select = config_of(made := make("llama", "text.jsonl", "pool.jsonl")).select
    assert select is not None
    assert (select.pool[0].limit, select.budget_ratio) == (20_000, 0.05)
    said = " ".join(made.text.replace("#", "").split())
    assert "20,000 rows, 20,000 drawn of each pool elsewhere; 5% of their tokens are chosen" in said
    recover = config_of(made).recover
    assert recover is not None
    # 256,000 tokens of rows, with which less text than there is comes to 262,144.
    assert recover.rows_weight is None or recover.rows_weight > 0.5


def test_without_text_the_quickstarts_stands_in_where_it_is_here(
    make: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make("llama")
    assert made.missing == "evaluate.perplexity.text"
    assert config_of(made).calibrate.method == "self_generated"
    assert "FILL IN" in made.text
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": words(90, i)}) + "\n" for i in range(9)))
    sources = f"[{{source: {tmp_path / 'held.jsonl'}, hash_percent: [0, 50]}}]"
    quick = yaml.safe_load(texts.QUICKSTART.read_text())
    quick["calibrate"]["text"] = quick["evaluate"]["perplexity"]["text"] = yaml.safe_load(sources)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick))
    monkeypatch.setattr(texts, "QUICKSTART", tmp_path / "quick.yaml")
    monkeypatch.setattr(texts, "SAMPLES", 1)
    monkeypatch.setattr(texts, "SAMPLE_TOKENS", 64)
    monkeypatch.setattr(texts, "WINDOW_TOKENS", 64)
    made = make("llama")
    assert made.missing == ""
    assert config_of(made).evaluate.perplexity.text[0].hash_percent == (0, 50)


@pytest.mark.parametrize(
    ("model", "text", "pool", "sentence"),
    [
        ("nowhere", "text.jsonl", None, "there is no nowhere"),
        ("org/name", "text.jsonl", None, "did you mean hf://org/name?"),
        ("none", "text.jsonl", None, "holds no config.json and no .gguf file, so it is no model"),
        ("bare", "text.jsonl", None, "holds no tokenizer"),
        ("bert", "text.jsonl", None, "model_type 'bert' is not supported"),
        ("llama", "absent.jsonl", None, "there is no absent.jsonl"),
        ("llama", "empty.jsonl", None, "empty.jsonl holds no rows"),
        ("llama", "short.txt", None, "short.txt holds about"),
        ("llama", "blank.jsonl", None, "has no column of text"),
        (
            "llama",
            "text.jsonl",
            "body.jsonl",
            "has no columns for a task and its answer; its columns are id, body",
        ),
        ("llama", "broken.jsonl", None, "broken.jsonl, line 1: expected JSON"),
        ("llama", "text.unknown", None, "does not say its format"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    model: str, text: str, pool: str | None, sentence: str, ground: Path, make: Callable[..., Draft]
) -> None:
    (ground / "none").mkdir(exist_ok=True)
    (ground / "none" / "notes.txt").write_text("no model")
    for name, config in (
        ("bare", (ground / "llama" / "config.json").read_text()),
        ("bert", '{"model_type": "bert"}'),
    ):
        (ground / name).mkdir(exist_ok=True)
        (ground / name / "config.json").write_text(config)
        shutil.copy(ground / "llama" / "model.safetensors", ground / name)
    (ground / "bert" / "tokenizer.json").write_text("{}")
    for name, content in (("empty.jsonl", ""), ("short.txt", "w4 w5"), ("blank.jsonl", '{"text": ""}\n'),
                          ("broken.jsonl", "{"), ("text.unknown", "w4")):  # fmt: skip
        (ground / name).write_text(content)
    with pytest.raises(BadInput) as refused:
        make(model, text, pool)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_strange_names_stay_values_and_comments(
    ground: Path, make: Callable[..., Draft], tmp_path: Path
) -> None:
    strange = ground / "a: b # {{ c }}\nname: evil"
    write_tiny_folder(strange)
    lines(ground / "t: 'x' {{ y }}.jsonl", [{"a 'b' \"c\" # d": words(120, seed)} for seed in range(40)])
    config = config_of(make(strange.name, "t: 'x' {{ y }}.jsonl"))
    assert config.name == "a-b-c-name-evil"
    assert config.calibrate.text[0].text == '{{ row["a \'b\' \\"c\\" # d"] }}'
    assert (tmp_path / "out" / config.model.source).resolve() == strange.resolve()


def test_a_gguf_file_ends_as_a_smaller_one_beside_it(ground: Path, make: Callable[..., Draft]) -> None:
    """In its own type, with itself as a baseline; the goal is about the file."""
    folder, file = ground / "as_gguf", ground / "tiny.Q8_0.gguf"
    model = tiny_model("llama", hidden_size=96, intermediate_size=256, vocab_size=256)
    with TemporaryDirectory() as tokenizer:
        write_byte_tokenizer(Path(tokenizer))
        save_model(model, folder, tokenizer_from=Path(tokenizer))
    write_gguf(model, load_tokenizer(folder), folder, ground / "whole.gguf", GgufType.F32)
    with LlamaCpp(ground / "whole.gguf") as llama:
        llama.quantize(file, FileType(GgufType.Q8_0), 1, {})

    config = config_of(make(str(file), "text.jsonl", goal="20 % smaller"))

    assert config.quantize is not None
    assert (config.name, config.quantize.formats) == ("tiny", ("gguf:Q8_0",))
    assert config.compare is not None
    assert config.compare.baselines == ("source_file", "quantized")
    assert config.gate is not None
    assert (config.gate.of, config.gate.max_file_ratio) == ("gguf:Q8_0", 1.0)
    # A fifth of the bytes, at 34 for 32 weights.
    gone = 0.2 * file.stat().st_size / (34 / 32)
    params = sum(one.numel() for one in model.parameters())
    assert config.prune.target.params_ratio == pytest.approx(1 - gone / params, abs=1e-3)
