"""lm-eval task files: the shipped ones by name, lm-eval's own by `lm_eval:NAME`, the user's own by path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import LM_EVAL, EvaluateConfig, EvaluationTask
from resprout.configs.suites import ENDINGS, EVALUATION, shipped_tasks
from resprout.tasks.evaluate.expressions import fault_of
from resprout.tasks.evaluate.lm_eval_tasks import lm_eval_task, resolved

TASK_ROLE = "task_"
"""Begins the roles of task data among a stage's inputs."""
CHOICES, WRITTEN, CONTINUED = "multiple_choice", "generate_until", "loglikelihood"
"""Kinds of tasks, by lm-eval's names of their output."""
DATA = (
    "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset",
    "training_split", "validation_split", "test_split", "fewshot_split", "tag", "group", "task_list",
)  # fmt: skip
"""Settings in which lm-eval's tasks name a data set of a hub, which for us are files, and groups of tasks."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
"""Names under which a task may say how many tokens are written."""
EXPRESSIONS = {"regex_pattern", "regexes_to_ignore"}
"""Settings of filters and metrics that are regular expressions, or a list of some."""
MOST_VALUES = 10_000
"""Of a task file, each as often as YAML's anchors repeat it."""
MOST_NESTED = 50
"""Levels of a task file, which functions that call themselves walk later."""
TOO_DEEP = f"nests values deeper than {MOST_NESTED} levels; give fewer"
NEEDED = "an lm-eval task needs at least task, output_type and doc_to_text"


Form = tuple[Callable[[Any], bool], str]
"""Whether a value has it, and the form in words."""


class Loader(yaml.SafeLoader):
    """Says at which line a value is that Python cannot make, such as a number of 5,000 digits."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None


def task_file(task: str, base: Path) -> Path:
    """Path of an lm-eval YAML: a shipped one by name, or the user's own, relative to `base`.

    Raises:
        BadInput: there is none; the nearest name is given.
    """
    shipped = EVALUATION / f"{task}.yaml"
    if shipped.is_file():
        return shipped
    own = base / Path(task).expanduser()
    if own.suffix in ENDINGS and own.is_file():
        return own
    near = difflib.get_close_matches(task, shipped_tasks(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput(
        f"unknown evaluation task '{task}'; {hint}give one of {', '.join(shipped_tasks())}, {LM_EVAL}NAME "
        "for a task of lm-eval, or the path of an lm-eval YAML"
    )


class TaskCode(NamedTuple):
    """Python code that a task file of the user's names: the file, its SHA-256, and the functions by key."""

    file: str
    sha256: str
    functions: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What is trusted, in words."""
        return f"Python code named in {self.file} (sha256 {self.sha256}) is trusted: {self.names}"

    @property
    def names(self) -> str:
        """The functions in words."""
        return ", ".join(self.functions[:3]) + (", ..." if len(self.functions) > 3 else "")


def read_task(task: str, base: Path, trusts_code: bool = False) -> dict[str, Any]:
    """The task's settings as plain data; one that is unknown or cannot be scored raises BadInput.

    Python functions of lm-eval's own tasks stand in it by name. A file of the user's may name some only where
    its code is trusted (evaluate.trust_task_code).
    """
    settings, code = _task(task, base)
    if code is not None and not trusts_code:
        raise BadInput(
            f"{task_file(task, base)} runs Python code ({code.names}); take it out, or read that code and "
            "set evaluate.trust_task_code: true"
        )
    return settings


def trusted_code(config: EvaluateConfig, base: Path) -> dict[str, TaskCode]:
    """By the name of a task the code that its file names, where that is trusted."""
    found = {one.name: task_code(one.task, base) for one in config.tasks.values() if config.trust_task_code}
    return {name: code for name, code in found.items() if code is not None}


def task_code(task: str, base: Path) -> TaskCode | None:
    """The Python code that a task file of the user's names; None of other tasks, and where there is none."""
    return _task(task, base)[1]


def _task(task: str, base: Path) -> tuple[dict[str, Any], TaskCode | None]:
    if task.startswith(LM_EVAL):
        return _usable(lm_eval_task(task.removeprefix(LM_EVAL)), task), None
    path = task_file(task, base)
    content = path.read_bytes()
    try:
        config = yaml.load(content.decode("utf-8"), Loader=Loader)
    except RecursionError:
        raise BadInput(f"{path} {TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path} is not plain YAML ({what}); tags such as !function are not run: name functions of "
            f"lm-eval as {LM_EVAL}folder/module.function"
        ) from None
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not an lm-eval task: {NEEDED}")
    # Before anything walks it as often as its anchors say.
    _strings(config, path)
    if (included := config.pop("include", None)) is not None:
        if not isinstance(included, str) or not included.startswith(LM_EVAL):
            raise BadInput(
                f"{path} includes {included}; write the settings of both into one file, or include "
                f"{LM_EVAL}NAME, a task of lm-eval"
            )
        whole = lm_eval_task(included.removeprefix(LM_EVAL))
        config = whole | config | ({"unsafe_code": True} if whole.get("unsafe_code") else {})
    settings = _usable(config, str(path))
    functions = () if path.parent == EVALUATION else tuple(_code(settings, path))
    return settings, TaskCode(path.name, sha256(content).hexdigest(), functions) if functions else None


def _code(settings: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Where settings name a function, or a script that `evaluate` loads."""
    for key, value in _strings(settings, path):
        if value.startswith(LM_EVAL):
            yield f"{key}: {value}"
    for metric in settings.get("metric_list") or ():
        if isinstance(metric, dict) and metric.get("hf_evaluate"):
            yield f"metric_list: {metric.get('metric')} with hf_evaluate"


def _strings(settings: Any, path: Path) -> list[tuple[str, str]]:
    """All texts of settings, each with its key at the top; BadInput where JSON could not hold the settings.

    Anchors may repeat values without end, and may nest them deeper than YAML's own brackets.
    """
    found, todo, seen = [], [("", settings, 0)], 0
    while todo:
        key, value, depth = todo.pop()
        if (seen := seen + 1) > MOST_VALUES:
            raise BadInput(
                f"{path} has more than {MOST_VALUES:,} values, anchors counted as often as they are used; "
                "give rows as data, and a task without such anchors"
            )
        if depth > MOST_NESTED:
            raise BadInput(f"{path} {TOO_DEEP} (under {key})")
        if isinstance(value, dict):
            for name in value:
                if not isinstance(name, str):
                    place = f"under {key}" if key else "at the top"
                    raise BadInput(
                        f"{path} has a key of type {type(name).__name__} {place}; put it in quotation marks"
                    )
            todo += [(key or name, inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            todo += [(key, inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            if any("\ud800" <= one <= "\udfff" for one in value):
                raise BadInput(f"{path} has half a character under {key}; write the character itself")
            found.append((key, value))
        elif isinstance(value, int | float):
            if not math.isfinite(value) if isinstance(value, float) else value.bit_length() > 63:
                raise BadInput(
                    f"{path} has a number under {key} that is infinite, none, or longer than 64 bits; give a "
                    "smaller one, or put it in quotation marks"
                )
        elif value is not None:
            raise BadInput(f"{path} has a {type(value).__name__} under {key}; put it in quotation marks")
    return sorted(found)


def check_task(task: str, base: Path, trusts_code: bool = False) -> None:
    """Raise BadInput where `read_task` does, an expression is none, or a package is not installed."""
    settings = read_task(task, base, trusts_code)
    resolved(settings)
    filters = [one for listed in settings.get("filter_list") or () for one in listed["filter"]]
    for one in (*filters, *(settings.get("metric_list") or ())):
        for key in EXPRESSIONS & one.keys():
            for given in one[key] if isinstance(one[key], list) else [one[key]]:
                if fault := fault_of(given):
                    raise BadInput(
                        f"{task} has {key} {given!r:.60}, which is no regular expression ({fault}); mend it"
                    )


def few_shot_of(place: str, task: EvaluationTask, settings: Mapping[str, Any]) -> int:
    """Solved examples in front of each item: the config's, else the task's own in a suite."""
    if task.few_shot is not None:
        return task.few_shot
    return 0 if place.startswith("zero_shot") else int(settings.get("num_fewshot") or 0)


def require_examples(name: str, few_shot: int, held: int) -> None:
    """Raise BadInput where fewer examples are held for each item than are shown."""
    if few_shot > held:
        raise BadInput(
            f"evaluation task {name} has few_shot {few_shot}, but each item has {max(0, held)} examples to "
            f"draw from; give few_shot: {max(0, held)} or less, or more examples"
        )


def capability_of(task: EvaluationTask, settings: Mapping[str, Any]) -> str:
    """The capability by which losses on the task count: the config's, else the task's, else its name."""
    metadata = settings.get("metadata")
    named = metadata.get("capability") if isinstance(metadata, Mapping) else None
    return task.capability or str(named or task.name)


def _check_forms(settings: Mapping[str, Any], forms: Mapping[str, Form], where: str) -> None:
    """Raise BadInput where a setting that is given has another form."""
    for key, (fits, form) in forms.items():
        if (value := settings.get(key)) is not None and not fits(value):
            raise BadInput(f"{where} has {key} {value!r:.60}; give {form}")


def _usable(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings without those of data sets; BadInput where answers cannot be compared item by item."""
    if settings.get("class") is not None:
        raise BadInput(f"{where} is a Python class of lm-eval, which takes no rows; give one that is YAML")
    kind = settings.get("output_type")
    if kind is None:
        raise BadInput(f"{where} is not an lm-eval task: {NEEDED}")
    if settings.get("unsafe_code"):
        raise BadInput(
            f"{where} runs the code that the model writes, which resprout does not; give python_code, which "
            "only reads it"
        )
    if settings.get("use_prompt") is not None:
        raise BadInput(f"{where} takes its prompt from elsewhere by use_prompt; give doc_to_text")
    if kind not in (CHOICES, WRITTEN, CONTINUED):
        raise BadInput(
            f"{where} has output_type {kind}; give {CHOICES}, {WRITTEN} or {CONTINUED} (evaluate.perplexity "
            "is for text)"
        )
    _check_forms(settings, FORMS, where)
    sampled = settings.get("generation_kwargs") or {}
    if sampled.get("do_sample") or settings.get("repeats", 1) != 1:
        raise BadInput(
            f"{where} draws its answers; set do_sample: false and repeats: 1 in a file of your own, so that "
            "models compare item by item"
        )
    if unknown := sorted(map(str, sampled.keys() - WRITING)):
        raise BadInput(
            f"{where} has generation_kwargs {', '.join(unknown)}; give any of {', '.join(sorted(WRITING))}"
        )
    _check_forms(sampled, WRITING, f"{where}: generation_kwargs")
    listed = settings.get("metric_list") or [{"metric": "acc"}]
    if not any(map(_is_mean, listed)):
        names = [one["metric"] for one in listed]
        raise BadInput(
            f"{where} has metrics {names}; give at least one that is a mean over items where higher is "
            "better, such as acc or exact_match"
        )
    return {key: value for key, value in settings.items() if key not in DATA}


def _is_mapping(given: Any) -> bool:
    return isinstance(given, dict)


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


def _is_count(given: Any) -> bool:
    return _is_number(given) and isinstance(given, int) and given >= 0


def _are_named(given: Any, name: str) -> bool:
    """Whether it is a list of one mapping or more, each with a text under a name."""
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(one, dict) and isinstance(one.get(name), str) for one in given)
    )


def _are_filters(given: Any) -> bool:
    return _are_named(given, "name") and all(_are_named(one.get("filter"), "function") for one in given)


def _are_texts(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, list) and all(isinstance(one, str) for one in given))


FORMS: Mapping[str, Form] = {
    "num_fewshot": (_is_count, "a whole number, 0 or more"),
    "generation_kwargs": (_is_mapping, "a mapping"),
    "fewshot_config": (_is_mapping, "a mapping"),
    "metric_list": (lambda given: _are_named(given, "metric"), "a list of mappings, each with metric: NAME"),
    "filter_list": (_are_filters, "a list of {name: NAME, filter: [{function: NAME}]}"),
}
"""Of the settings of a task."""
WRITING: Mapping[str, Form] = {
    **{name: (lambda given: _is_count(given) and given > 0, "a whole number, 1 or more") for name in LENGTHS},
    "until": (_are_texts, "a text, or a list of texts"),
    "do_sample": (lambda given: isinstance(given, bool), "true or false"),
    **dict.fromkeys(
        (
            "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "num_return_sequences",
        ),
        (_is_number, "a number"),
    ),
}  # fmt: skip
"""Of the settings of writing; `generate` of transformers has others, one of which names a folder of code."""
OTHER = {
    "brier_score", "f1", "mcc", "bleu", "chrf", "ter", "perplexity", "likelihood", "bypass",
    "word_perplexity", "byte_perplexity", "bits_per_byte",
}  # fmt: skip
"""Metrics of lm-eval that are no mean over items where nothing else is said."""


def _is_mean(metric: Mapping[str, Any]) -> bool:
    fallback = "other" if metric.get("metric") in OTHER else "mean"
    return metric.get("aggregation", fallback) == "mean" and metric.get("higher_is_better", True) is True
