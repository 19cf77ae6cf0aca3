"""A task file from elsewhere runs no code: it is refused, or its templates are rendered within limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import utils

from resprout.configs.errors import BadInput
from resprout.configs.schema import EvaluateConfig
from resprout.configs.suites import shipped_tasks
from resprout.flows.audit.render import origin_lines
from resprout.tasks.evaluate.task import all_asked, count_items
from resprout.tasks.evaluate.task_files import check_task, read_task, trusted_code
from resprout.tasks.evaluate.templates import render

TOUCH = "{{ cycler.__init__.__globals__.os.system('touch MADE') }}"
PLAIN: dict[str, Any] = {
    "task": "x",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "exact_match"}],
}
CHOICES = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}
ROW = {"question": "Is it?", "answer": "yes"}
TRUST = r"x\.yaml runs Python code \({}.*\); take it out, or .* set evaluate.trust_task_code: true"


def config(path: Path, rows: Path, **more: Any) -> EvaluateConfig:
    suite = {"tasks": [{"task": str(path), "name": "x", "data": {"source": str(rows)}}]}
    return EvaluateConfig.model_validate(
        {"perplexity": {"name": "w", "text": [{"source": "x"}]}, "suites": [suite], **more}
    )


def own(place: Path, settings: Mapping[str, Any] | str) -> str:
    path = place / "x.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(dict(settings)))
    return str(path)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"process_results": "lm_eval:humaneval/utils.pass_at_k"}, TRUST.format("process_results")),
        ({"process_docs": "lm_eval:hellaswag/utils.process_docs"}, TRUST.format("process_docs")),
        ({"doc_to_text": "lm_eval:coqa/utils.doc_to_text"}, TRUST.format("doc_to_text")),
        ({"custom_dataset": "x", "fewshot_config": {"samples": "lm_eval:a/b.c"}}, TRUST.format("few")),
        (
            {"filter_list": [{"name": "x", "filter": [{"function": "custom", "filter_fn": "lm_eval:a.b"}]}]},
            TRUST.format("filter_list"),
        ),
        ({"metric_list": [{"metric": "exact_match", "aggregation": "mean"}, {"metric": "lm_eval:a.b"}]},
         TRUST.format("metric_list")),
        ({"metric_list": [{"metric": "exact_match", "hf_evaluate": True}]}, TRUST.format("metric_list")),
        ({"include": "lm_eval:hellaswag"}, TRUST.format("process_docs")),
        ({"include": "lm_eval:humaneval", "unsafe_code": False}, "runs the code that the model writes"),
        ({"include": "other.yaml"}, "write the settings of both into one file"),
        ({"include": ["lm_eval:gsm8k", "other.yaml"]}, "write the settings of both into one file"),
        ({"class": "lm_eval:squadv2/task.SQuAD2"}, "is a Python class"),
        ({"use_prompt": "mine.yaml:x"}, "use_prompt; give doc_to_text"),
        (
            {"generation_kwargs": {"custom_generate": "./mine", "trust_remote_code": True}},
            "has generation_kwargs custom_generate, trust_remote_code; give any of do_sample",
        ),
        ({"generation_kwargs": ["custom_generate"]}, r"generation_kwargs \[.*; give a mapping"),
        ("output_type: !function mine.run\n", "tags such as !function are not run"),
        ("doc_to_text: !!python/object/apply:os.system ['touch MADE']\n", "is not plain YAML"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [" + "*a, " * 40 + "]\nc: [" + "*b, " * 40 + "]\n",
         "has more than 10,000 values"),
        ("a: &a [*a]\n", "nests values deeper than 50 levels; give fewer"),
        ("a: " + "[" * 9000, "nests values deeper than 50 levels; give fewer"),
    ],
)  # fmt: skip
def test_a_file_that_names_code_is_refused(
    settings: dict[str, Any] | str, fault: str, tmp_path: Path
) -> None:
    whole = settings if isinstance(settings, str) else {**PLAIN, **settings}
    if isinstance(whole, dict) and "include" in whole:
        whole = {"task": "x", **settings}
    with pytest.raises(BadInput, match=fault):
        check_task(own(tmp_path, whole), tmp_path)


WHOLE = "give a whole number, 0 or more"
NAMED = "give a list of mappings, each with metric: NAME"
QUOTED = "put it in quotation marks"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("num_fewshot: five", f"has num_fewshot 'five'; {WHOLE}"),
        ("num_fewshot: '5'", f"has num_fewshot '5'; {WHOLE}"),
        ("num_fewshot: 2.5", f"has num_fewshot 2.5; {WHOLE}"),
        ("num_fewshot: -1", f"has num_fewshot -1; {WHOLE}"),
        ("num_fewshot: true", f"has num_fewshot True; {WHOLE}"),
        ("metric_list: {metric: acc}", rf"has metric_list {{'metric': 'acc'}}; {NAMED}"),
        ("metric_list: [acc]", rf"has metric_list \['acc'\]; {NAMED}"),
        ("metric_list: []", rf"has metric_list \[\]; {NAMED}"),
        ("metric_list: [null, {metric: acc}]", NAMED),
        ("metric_list: [{metric: [acc]}]", NAMED),
        ("metric_list: [{aggregation: mean}]", NAMED),
        ("filter_list: [x]", r"has filter_list \['x'\]; give a list of {name: NAME, filter: \["),
        ("filter_list: [{name: x, filter: [{regex_pattern: x}]}]", "give a list of {name: NAME"),
        ("generation_kwargs: {max_gen_toks: many}",
         "generation_kwargs has max_gen_toks 'many'; give a whole number, 1 or more"),
        ("generation_kwargs: {until: [5]}", r"has until \[5\]; give a text, or a list of texts"),
        ("generation_kwargs: {top_k: x}", "has top_k 'x'; give a number"),
        ("metadata: {2020-01-01: 1}", f"has a key of type date under metadata; {QUOTED}"),
        ("2020-01-01: 1", f"has a key of type date at the top; {QUOTED}"),
        ("metadata: {a: {1: 1, '1': 2}}", f"has a key of type int under metadata; {QUOTED}"),
        ("metadata: {a: " + "9" * 50 + "}", "has a number under metadata that is .* longer than 64 bits"),
        ("metadata: {a: 0x" + "9" * 5000 + "}", "has a number under metadata that is .* longer than 64 bits"),
        ("metadata: {a: " + "9" * 5000 + "}", "is not plain YAML .*value has 5000 digits.* line 7"),
        ("metadata: {a: .inf}", f"has a number under metadata that is infinite.*{QUOTED}"),
        ('metadata: {a: "\\ud83d"}', "has half a character under metadata; write the character itself"),
        ("metadata: " + "[" * 200 + "]" * 200, r"nests values deeper than 50 levels; give fewer \(under"),
        ("metadata: " + "[" * 900 + "]" * 900, "nests values deeper than 50 levels"),
        ("a: &a0 [1]\n" + "".join(f"a: &a{at + 1} [*a{at}]\n" for at in range(4000)),
         "nests values deeper than 50 levels"),
    ],
)  # fmt: skip
def test_a_setting_of_another_form_is_named(more: str, fault: str, tmp_path: Path) -> None:
    key = more.partition(":")[0]
    text = yaml.safe_dump({name: value for name, value in PLAIN.items() if name != key})
    path = own(tmp_path, text + more)
    with pytest.raises(BadInput, match=f"^{path}.* {fault}") as raised:
        check_task(path, tmp_path)
    assert len(str(raised.value)) < 500 + len(path)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"doc_to_text": TOUCH}, "access to attribute '__init__'.* is unsafe|SecurityError"),
        ({"doc_to_target": TOUCH}, "SecurityError"),
        ({**CHOICES, "doc_to_choice": TOUCH}, "SecurityError"),
        ({"gen_prefix": TOUCH, "num_fewshot": 1}, "SecurityError"),
        ({"description": TOUCH, "num_fewshot": 1}, "SecurityError"),
        ({"doc_to_text": "{{ self.__init__.__globals__ }}"}, "SecurityError"),
        ({"doc_to_text": "{{ question | attr('__class__') }}"}, "SecurityError"),
        ({"doc_to_text": "{{ '{0.__class__.__mro__}'.format(question) }}"}, "SecurityError"),
        ({"doc_to_text": "{{ ''['__class__'].mro() }}"}, "UndefinedError|SecurityError"),
        ({"doc_to_text": "{% include '/etc/passwd' %}"}, "TypeError: no loader"),
        ({"doc_to_text": "{{ 'a' * 10**11 }}"}, "more than 4 GiB of memory"),
        ({"doc_to_text": "{{ 'a' * 10**8 }}"}, "100,000,002 characters of a row"),
        ({"doc_to_text": "{{ range(10**9) | list }}"}, "Range too big"),
        ({"doc_to_text": "{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5}, "did not end within 1 s"),
        ({"doc_to_text": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"}, "RecursionError"),
        ({**CHOICES, "doc_to_choice": "{{ '[' * 100000 }}"}, "SyntaxError|MemoryError|RecursionError"),
        ({**CHOICES, "doc_to_choice": "{{ '-' * 100000 }}1"}, "SyntaxError|MemoryError|RecursionError"),
        ({"dataset_path": "mine", "dataset_kwargs": {"trust_remote_code": True}, "weight": 1}, "weight"),
        (
            {"metric_list": [{"metric": "./mine", "aggregation": "mean"}]},
            "none of lm-eval's; give one of acc",
        ),
        ({"metric_list": [{"metric": "exact_match", "odd": 5}]}, "TypeError"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "odd"}]}]}, "KeyError"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "regex", "odd": 1}]}]}, "TypeError"),
    ],
)
def test_templates_of_a_file_are_confined(
    settings: dict[str, Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.startswith("did not end"):
        monkeypatch.setattr("resprout.tasks.data.confined.SECONDS", 0.9)
    made = tmp_path / "made"
    path = own(tmp_path, json.loads(json.dumps({**PLAIN, **settings}).replace("MADE", str(made))))
    place = tmp_path / "acquired"
    place.mkdir()
    (place / "task.json").write_text(json.dumps(read_task(path, tmp_path)))
    (place / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps({**ROW, 'answer': 'no'})}\n")
    (task,) = all_asked(config(Path(path), tmp_path).placed_suites, {"task_x": place})
    with pytest.raises(BadInput, match=rf"(?s)evaluation task x .*({fault})"):
        count_items(task)
    assert not made.exists()


@pytest.mark.parametrize("given", ["(", "a{99999999999}", 5])
def test_an_expression_that_is_none_is_named(given: Any, tmp_path: Path) -> None:
    fault = r"has {} .*, which is no regular expression \(.+\); mend it"
    filters = [{"name": "x", "filter": [{"function": "regex", "regex_pattern": given}]}]
    path = own(tmp_path, {**PLAIN, "filter_list": filters})
    with pytest.raises(BadInput, match=fault.format("regex_pattern")):
        check_task(path, tmp_path)
    metrics = [{"metric": "exact_match", "regexes_to_ignore": ["a", given]}]
    path = own(tmp_path, {**PLAIN, "metric_list": metrics})
    with pytest.raises(BadInput, match=fault.format("regexes_to_ignore")):
        check_task(path, tmp_path)


def test_trusted_code_is_named_with_the_file_s_digest(tmp_path: Path) -> None:
    settings = {**PLAIN, "process_docs": "lm_eval:hellaswag/utils.process_docs"}
    path = own(tmp_path, settings)
    assert read_task(path, tmp_path, trusts_code=True)["process_docs"] == settings["process_docs"]
    given = config(Path(path), tmp_path / "rows.jsonl")
    assert trusted_code(given, tmp_path) == {}
    code = trusted_code(given.model_copy(update={"trust_task_code": True}), tmp_path)["x"]
    digest = sha256(Path(path).read_bytes()).hexdigest()
    assert origin_lines({"sources": [], "trusted_code": code._asdict()}) == [
        f"Python code named in x.yaml (sha256 {digest}) is trusted: "
        "process_docs: lm_eval:hellaswag/utils.process_docs"
    ]


def test_a_template_gives_what_lm_evals_own_environment_gives() -> None:
    row = {
        "question": "Ünïcode\ud83d\n", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B",
        "passage": "p", "label": 1, "answer": "2", "sentence": "a_b c", "option1": "x", "option2": "y",
        "prompt": "p", "entry_point": "f", "check": {"has": ["é"], "words": [1, 2]}, "goal": "g", "sol1": "1",
        "sol2": "2", "subject": "high_school", "query": "q", "text": "t", "text_a": "a", "text_b": "b",
        "relevance": 0, "relevance_a": 1, "relevance_b": 2, "score": 0.1 + 0.2, "none": None,
    }  # fmt: skip
    templates = {
        one
        for name in shipped_tasks()
        for one in read_task(name, Path()).values()
        if isinstance(one, str) and "{" in one
    }
    templates |= {"{{ score }} {{ none }}\n", "{{ question | regex_replace('[aeiou]', '_') }}"}
    compared = 0
    for template in templates:
        try:
            expected = utils.env.from_string(template).render(**row)
        except Exception:
            continue
        compared += 1
        assert render(template, row) == expected
    assert compared > 20
