"""Suites: protocols are lm-eval's, items are scored as by its command line, cut answers are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import WHOLE, Share, silent
from resprout.tasks.evaluate import answers as module
from resprout.tasks.evaluate.answers import Answers, accuracies, answers, details
from resprout.tasks.evaluate.lm_eval_tasks import folder, resolved
from resprout.tasks.evaluate.task import Asked, all_asked, count_items, require_chat
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import write_tiny_folder
from tiny_run import TWO_CHOICES, words

Rows = list[dict[str, Any]]
CHOSEN = {"text": ["w5", "w6 w7", "w8"], "label": ["A", "B", "C"]}
ROWS: dict[str, Rows] = {
    "boolq": [{"passage": "Ice melts.", "question": "does ice melt", "label": 1}],
    "piqa": [{"goal": "open a door", "sol1": "turn the handle", "sol2": "turn the wall", "label": 0}],
    "hellaswag": [
        {
            "activity_label": "Baking", "ctx_a": "A man mixes dough.", "ctx_b": "he", "label": "2",
            "endings": ["[title] sings.", "flies  off.", "rolls it out.", "waits."], "ctx": "",
        }
    ],
    "winogrande": [
        {"sentence": "The cup fell off the table as _ was wet.", "option1": "the cup", "option2": "it",
         "answer": "2"}
    ],
    "arc_easy": [{"question": "What is hot?", "choices": CHOSEN, "answerKey": "B"}],
    "arc_challenge": [{"question": "What is cold?", "choices": CHOSEN, "answerKey": "C"}],
    "openbookqa": [{"question_stem": "Rain is", "choices": CHOSEN, "answerKey": "A"}],
    "gsm8k": [{"question": f"{at} + 1?", "answer": f"One more. #### {at + 1}"} for at in range(7)],
    "nq_open": [{"question": "who sang", "answer": ["Ann", "Ann Lee"]}],
    "triviaqa": [{"question": "Who sang", "answer": {"aliases": ["Ann", "Ann Lee"]}}],
    "mmlu": [
        {"subject": "human_aging", "question": f" Q{at} ", "choices": ["a", "b", "c", "d"], "answer": at % 4}
        for at in range(7)
    ],
}  # fmt: skip
LM_EVALS = {"mmlu": "mmlu_human_aging"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("suites") / "model", max_position_embeddings=512)


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(
    root: Path, *tasks: tuple[Mapping[str, Any], Mapping[str, Any], Rows, Rows | None], **suite: Any
) -> list[Asked]:
    """Tasks as acquired: keys of the config, settings of the YAML, rows, examples."""
    inputs, listed = {}, []
    for keys, settings, rows, examples in tasks:
        place = root / f"acquired-{keys['task']}"
        place.mkdir()
        (place / "task.json").write_text(json.dumps(settings))
        write(place / "rows.jsonl", rows)
        more = {} if examples is None else {"examples": {"source": "x"}}
        if examples is not None:
            write(place / "examples.jsonl", examples)
        listed.append({"data": {"source": "x"}, **more, **keys})
        inputs[f"task_{keys['task']}"] = place
    config = EvaluateConfig.model_validate(
        {"perplexity": {"name": "w", "text": [{"source": "x"}]}, "suites": [{"tasks": listed, **suite}]}
    )
    return all_asked(config.placed_suites, inputs)


def run(model: Path, tasks: list[Asked], share: Share = WHOLE, seed: int = 17) -> dict[str, Answers]:
    return answers(load_model(model, "float32", "cpu"), load_tokenizer(model), tasks, seed, share, silent)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_shipped_task_asks_what_lm_eval_asks(name: str, tmp_path: Path) -> None:
    asked = []
    for place, task in (("ours", name), ("theirs", f"lm_eval:{LM_EVALS.get(name, name)}")):
        (tmp_path / place).mkdir()
        rows, few = ROWS[name], {"few_shot": 5} if name in ("gsm8k", "mmlu") else {}
        examples = rows[1:] if few else None
        keys = {"task": "x", **few}
        (one,) = ask(tmp_path / place, (keys, read_task(task, tmp_path), rows[:1], examples))
        made = one.made()
        made.set_fewshot_seed(seed=3)
        made.build_all_requests()
        targets = [made.doc_to_target(row) for row in made.eval_docs]
        scored = (made.aggregation().keys(), made.config.filter_list, made._metric_fn_kwargs)
        asked.append(([one.args for one in made.instances], targets, scored))
        assert asked[0][0], "nothing was asked"
    assert asked[0] == asked[1]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_shipped_task_fits_rows_of_its_data(name: str, tmp_path: Path) -> None:
    (one,) = ask(tmp_path, ({"task": "x", "few_shot": 0}, read_task(name, tmp_path), ROWS[name][:1], None))
    assert count_items(one) == 1


def test_a_context_that_is_none_of_the_choices_is_bad_input(tmp_path: Path) -> None:
    rows = [ROWS["winogrande"][0], {**ROWS["winogrande"][0], "answer": "3"}]
    (one,) = ask(tmp_path, ({"task": "x"}, read_task("winogrande", tmp_path), rows, None))
    with pytest.raises(
        BadInput, match=r"does not fit row 2 of its data, .*the answer 2 is none of the choices"
    ):
        count_items(one)


def test_boolq_takes_rows_as_the_package_has_them(tmp_path: Path) -> None:
    rows = [{"passage": "Ice melts.", "question": "does ice melt", "answer": True}]
    (one,) = ask(tmp_path, ({"task": "boolq"}, read_task("boolq", tmp_path), rows, None))
    assert count_items(one) == 1
    made = one.made()
    assert made.doc_to_target(made.eval_docs[0]) == 1


WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["w190"], "do_sample": False},
    "filter_list": [
        {
            "name": "first-word",
            "filter": [{"function": "regex", "regex_pattern": "(w[0-9]+)"}, {"function": "take_first"}],
        },
        {"name": "all", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
CONTINUED: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{' ' + answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}


def made_rows(count: int, seed: int) -> Rows:
    return [
        {
            "question": words(3 + at % 5, seed + at), "answer": words(1, seed + at + 1), "label": at % 2,
            "a": words(2, seed + at + 2), "b": words(1 + at % 3, seed + at + 3),
        }
        for at in range(count)
    ]  # fmt: skip


def test_each_item_is_scored_as_by_lm_evals_command_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ITEMS", 8)
    rows, examples = made_rows(30, 0), made_rows(9, 500)
    kinds = {"chosen": (TWO_CHOICES, 2), "written": (WRITTEN, 3), "continued": (CONTINUED, 0)}
    limit, new = 21, 25
    tasks = ask(
        tmp_path,
        *(
            ({"task": f"{name}.yaml".removesuffix(".yaml"), "few_shot": few}, settings, rows, examples)
            for name, (settings, few) in kinds.items()
        ),
        limit=limit, batch_size=4, max_new_tokens=new,
    )  # fmt: skip
    found = run(model, tasks)

    yamls = tmp_path / "yamls"
    yamls.mkdir()
    data = {
        "validation": str(write(tmp_path / "rows.jsonl", rows)),
        "examples": str(write(tmp_path / "examples.jsonl", examples)),
    }
    for name, (settings, few) in kinds.items():
        theirs = json.loads(json.dumps(settings)) | {
            "task": f"tiny_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": data},
            "validation_split": "validation", "fewshot_split": "examples", "num_fewshot": few,
        }  # fmt: skip
        if name == "written":
            theirs["generation_kwargs"]["max_gen_toks"] = new
        (yamls / f"{name}.yaml").write_text(yaml.safe_dump(theirs))
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--model", "hf",
            "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", "4",
            "--tasks", ",".join(f"tiny_{name}" for name in kinds), "--include_path", str(yamls),
            "--limit", str(limit), "--seed", "17", "--log_samples", "--output_path", str(tmp_path / "out"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name in kinds:
        (log,) = (tmp_path / "out").rglob(f"samples_tiny_{name}_*.jsonl")
        samples = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(samples) == limit * (2 if name == "written" else 1)
        for metric, scores in found[name].right.items():
            kept = [
                one
                for one in samples
                if name != "written" or metric.endswith(one["filter"].replace("-", "_"))
            ]
            kept.sort(key=lambda one: one["doc_id"])
            plain = metric.partition("_first_word")[0].removesuffix("_all")
            assert scores == [float(one[plain]) for one in kept], (name, metric)
        if name == "written":
            kept = sorted((one for one in samples if one["filter"] == "all"), key=lambda one: one["doc_id"])
            assert [one["answer"] for one in found[name].items] == [one["resps"][0][0] for one in kept]
            assert len({one["answer"] for one in found[name].items}) > 5
    assert sorted(found["chosen"].right) == ["acc", "acc_norm"]
    assert sorted(found["continued"].right) == ["acc"], "perplexity is no mean over items"


def test_shards_draw_the_examples_of_the_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ITEMS", 4)
    tasks = ask(
        tmp_path,
        ({"task": "own", "few_shot": 2}, TWO_CHOICES, made_rows(14, 0), None),
        ({"task": "shown", "few_shot": 2}, WRITTEN, made_rows(14, 0), made_rows(5, 90)),
        batch_size=4, max_new_tokens=6,
    )  # fmt: skip
    whole = run(model, tasks)
    joined: dict[str, Answers] = {}
    for index in range(3):
        for name, part in run(model, tasks, Share(index, 3)).items():
            joined.setdefault(name, Answers(part.lm_eval_version)).add(part)
    assert joined == whole
    prompts = {one["prompt"] for one in whole["own"].items}
    assert len(prompts) == 14
    other = run(model, tasks, seed=18)
    assert {one["prompt"] for one in other["own"].items} != prompts


def test_cut_answers_are_counted(model: Path, tmp_path: Path) -> None:
    tasks = ask(tmp_path, ({"task": "w"}, WRITTEN, made_rows(12, 0), None), batch_size=5, max_new_tokens=25)
    found = run(model, tasks)
    cut = [one["cut"] for one in found["w"].items]
    stopped = [len(one["answer"].split()) < 25 for one in found["w"].items]
    assert cut == [not one for one in stopped]
    assert 0 < sum(cut) < 12, "the test needs both kinds"
    assert accuracies(found)["w_cut"] == sum(cut) / 12
    assert details(found, tasks)["w"]["prompts_cut"] == 0


def test_prompts_that_are_too_long_are_counted(model: Path, tmp_path: Path) -> None:
    rows = [{**made_rows(1, 0)[0], "question": words(600, 1)}, made_rows(1, 5)[0]]
    tasks = ask(
        tmp_path, ({"task": "w"}, WRITTEN, rows, None), ({"task": "c"}, TWO_CHOICES, rows, None)
    )  # fmt: skip
    found = run(model, tasks)
    assert (found["w"].prompts_cut, found["c"].prompts_cut) == (1, 2)
    # Half of what the model takes, where 1,024 tokens are more than that.
    assert max(len(one["answer"].split()) for one in found["w"].items) <= 256


@pytest.mark.parametrize(
    ("few", "examples", "more", "expected"),
    [
        (4, 2, {}, "has few_shot 4, but each item has 2 examples to draw from; give few_shot: 2 or less"),
        (2, 2, {}, None),
        (
            4,
            None,
            {},
            "has few_shot 4, but each item has 2 examples",
        ),
        (2, None, {}, None),
        (3, None, {"sampler": "first_n"}, "has few_shot 3, but each item has 2 examples"),
        (2, None, {"sampler": "first_n", "samples": made_rows(2, 9)}, None),
        (2, None, {"samples": made_rows(2, 9)}, "has few_shot 2, but each item has 1 examples"),
    ],
)
def test_examples_that_are_too_few_are_bad_input(
    few: int, examples: int | None, more: dict[str, Any], expected: str | None, tmp_path: Path
) -> None:
    settings = {**WRITTEN, **({"fewshot_config": more} if more else {})}
    shown = None if examples is None else made_rows(examples, 7)
    (one,) = ask(tmp_path, ({"task": "w", "few_shot": few}, settings, made_rows(3, 0), shown))
    if expected is None:
        assert count_items(one) == 3
        return
    with pytest.raises(BadInput, match=expected):
        count_items(one)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ({"has": ["("]}, r"gives has: '\(', which is no regular expression \(missing \)"),
        ({"lacks": ["[a"]}, r"gives lacks: '\[a', which is no regular expression"),
        ({"has": "w5"}, "gives has: 'w5', which is no list of regular expressions"),
        ({"words": [3]}, r"gives words: \[3\], which is no \[least, most\]"),
        ({"lines": "two"}, "gives lines: 'two', which is no whole number"),
        ({"json": "yes"}, "gives json: 'yes', which is neither true nor false"),
        ({"hass": ["w5"]}, "gives hass, and may have has, lacks, words, lines, json"),
        ("not json", "gives 'not json', which is no mapping with any of has, lacks"),
    ],
)
def test_instructions_that_cannot_be_checked_are_bad_input(check: Any, expected: str, tmp_path: Path) -> None:
    right: Any = {"has": ["w6"], "words": [1, 4]} if isinstance(check, dict) else check
    rows = [{"prompt": "w5", "check": right}, {"prompt": "w6", "check": check}]
    (one,) = ask(tmp_path, ({"task": "instructions"}, read_task("instructions", tmp_path), rows, None))
    number = 2 if isinstance(check, dict) else 1
    with pytest.raises(
        BadInput, match=rf"for row {number} doc_to_target, {{{{ check \| tojson }}}}, {expected}"
    ):
        count_items(one)


def test_instructions_and_code_that_can_be_checked_are_counted(tmp_path: Path) -> None:
    checked: Rows = [
        {"prompt": "w5", "check": one}
        for one in ({"has": ["^w6$"], "lacks": ["w7"]}, {"words": [1, 4]}, {"lines": 2}, {"json": True})
    ]
    code: Rows = [{"prompt": "def add(a, b):\n", "entry_point": "add"}]
    tasks = ask(
        tmp_path,
        ({"task": "instructions"}, read_task("instructions", tmp_path), checked, None),
        ({"task": "python_code"}, read_task("python_code", tmp_path), code, None),
    )
    assert [count_items(one) for one in tasks] == [4, 1]
    code[0]["entry_point"] = 5
    write(tasks[1].rows, code)
    with pytest.raises(BadInput, match="gives defines: 5, which is no text"):
        count_items(tasks[1])


def test_a_column_of_two_kinds_is_tried_row_by_row(tmp_path: Path) -> None:
    rows = [{"prompt": "w5", "check": {"has": ["w6"]}}, {"prompt": "w6", "check": "not json"}]
    (one,) = ask(tmp_path, ({"task": "instructions"}, read_task("instructions", tmp_path), rows, None))
    with pytest.raises(BadInput, match=r"for row 2 doc_to_target, .*gives 'not json'"):
        count_items(one)


def test_a_metric_of_a_hub_is_not_loaded(tmp_path: Path) -> None:
    settings = {**WRITTEN, "metric_list": [{"metric": "sacrebleu_of_mine", "aggregation": "mean"}]}
    (one,) = ask(tmp_path, ({"task": "w"}, settings, made_rows(3, 0), None))
    with pytest.raises(
        BadInput, match="metric sacrebleu_of_mine, which is none of lm-eval's; give one of acc"
    ):
        count_items(one)


def test_functions_are_lm_evals_alone() -> None:
    settings = {"process_docs": "lm_eval:hellaswag/utils.process_docs", "doc_to_text": "x"}
    assert resolved(settings)["process_docs"].__module__ == "lm_eval.tasks.hellaswag.utils"
    for name in ("../../../os.system", "os.system", "hellaswag/utils.re", "/etc/passwd.x", "gsm8k.x"):
        with pytest.raises(BadInput, match=r"not inside lm-eval's tasks|no function of lm-eval"):
            resolved(f"lm_eval:{name}")


@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "minerva_math_algebra", "coqa", "mmlu_anatomy"])
def test_settings_of_lm_evals_tasks_name_no_place_of_this_machine(name: str, tmp_path: Path) -> None:
    text = json.dumps(read_task(f"lm_eval:{name}", tmp_path))
    assert str(folder()) not in text
    assert "dataset_path" not in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("humaneval", "runs the code that the model writes, which resprout does not; give python_code"),
        ("squadv2", "a Python class of lm-eval"),
        ("helaswag", "did you mean lm_eval:hellaswag"),
        ("wikitext", "evaluate.perplexity is for text"),
        (
            "mmlu",
            r"lm_eval:mmlu is a group of tasks; name one of them \(lm_eval:mmlu_\w+, lm_eval:mmlu_\w+, "
            r"lm_eval:mmlu_\w+, \.\.\.\), or mmlu, which resprout has",
        ),
        ("ai2_arc", r"is a group of tasks; name one of them \(lm_eval:arc_easy"),
        ("mmlu_stem_tasks", r"is a group of tasks; name one of them \(lm_eval:mmlu_abstract_algebra"),
    ],
)
def test_lm_evals_tasks_that_do_not_fit_are_refused(name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=expected):
        read_task(f"lm_eval:{name}", tmp_path)


def test_chat_needs_a_template_that_ends(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    with pytest.raises(BadInput, match="chat: true, but the tokenizer has no chat template; set chat: false"):
        require_chat(tokenizer)
    tokenizer.chat_template = "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}"
    with pytest.raises(BadInput, match=r"chat: true, but .*; set chat: false"):
        require_chat(tokenizer)
    tokenizer.chat_template = "{% for one in messages %}w9 {{ one.content }} {% endfor %}"
    require_chat(tokenizer)


def test_chat_prompts_go_through_the_template(model: Path, tmp_path: Path) -> None:
    tasks = ask(
        tmp_path, ({"task": "own", "few_shot": 1}, TWO_CHOICES, made_rows(3, 0), None), chat=True
    )  # fmt: skip
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{% for one in messages %}{{ one.role }} w9 {{ one.content }} {% endfor %}"
    found = answers(load_model(model, "float32", "cpu"), tokenizer, tasks, 17, WHOLE, silent)
    assert found["own"].items[0]["prompt"].count("w9") == 3
    assert found["own"].items[0]["prompt"].startswith("user w9")


FEW_TURNS = "{% for one in messages %}{{ one.role }} w9 {{ one.content }} {% endfor %}"
ENDLESS = "{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (ENDLESS, "did not end within 2 s of processor time"),
        ("{{ 'a' * 10**11 }}", "more than 4 GiB of memory"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_a_chat_template_is_confined_however_many_turns_there_are(
    more: str, fault: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 1.9)
    tasks = ask(tmp_path, ({"task": "own", "few_shot": 1}, TWO_CHOICES, made_rows(3, 0), None), chat=True)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = FEW_TURNS + "{% if messages | length > 2 %}" + more + "{% endif %}"
    require_chat(tokenizer)
    with pytest.raises(BadInput, match=rf"chat template .*{fault}.*; .* set chat: false in the suite"):
        answers(load_model(model, "float32", "cpu"), tokenizer, tasks, 17, WHOLE, silent)


def test_a_chat_template_without_a_system_role_gets_no_description(model: Path, tmp_path: Path) -> None:
    settings = {**TWO_CHOICES, "description": "w7 w7"}
    tasks = ask(tmp_path, ({"task": "own"}, settings, made_rows(3, 0), None), chat=True)
    tokenizer = load_tokenizer(model)
    for refuses, held in (
        ("", True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}", False),
    ):
        tokenizer.chat_template = refuses + FEW_TURNS
        found = answers(load_model(model, "float32", "cpu"), tokenizer, tasks, 17, WHOLE, silent)
        assert ("system w9 w7 w7" in found["own"].items[0]["prompt"]) == held


SLOW = "([w0-9 ]+)+!"
"""Takes twice as long for each character more of an answer in the tiny vocabulary."""


@pytest.mark.parametrize(
    "settings",
    [
        {
            "filter_list": [
                {
                    "name": "x",
                    "filter": [{"function": "regex", "regex_pattern": SLOW}, {"function": "take_first"}],
                }
            ]
        },
        {"metric_list": [{"metric": "exact_match", "regexes_to_ignore": [SLOW]}]},
        {"metric_list": [{"metric": "follows"}], "doc_to_target": "check"},
    ],
    ids=["filter", "metric", "check"],
)
def test_an_expression_without_end_ends_with_a_sentence(
    settings: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 0.9)
    row = {"question": "w5", "answer": "w6", "check": json.dumps({"has": [SLOW]})}
    written = {**WRITTEN, "filter_list": None, "generation_kwargs": {"until": ["!"]}}
    tasks = ask(tmp_path, ({"task": "w"}, {**written, **settings}, [row], None), max_new_tokens=40)
    assert count_items(tasks[0]) == 1
    with pytest.raises(BadInput, match=r"task w: the regular expression '\(\[w.* did not end within 1 s"):
        run(model, tasks)
