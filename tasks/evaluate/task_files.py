"""lm-eval task files: the shipped ones by name, lm-eval's own by `lm_eval:NAME`, the user's own by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import LM_EVAL, EvaluateConfig, EvaluationTask
from resprout.configs.suites import ENDINGS, EVALUATION, shipped_tasks
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
WRITING = {
    *LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty",
    "num_return_sequences",
}  # fmt: skip
"""Settings of writing; `generate` of transformers has others, one of which names a folder of code to run."""
FORMS = {"generation_kwargs": dict, "metric_list": list, "filter_list": list, "fewshot_config": dict}
"""Types of settings."""
MOST_VALUES = 10_000
"""Of a task file, each as often as YAML's anchors repeat it."""
NEEDED = "an lm-eval task needs at least task, output_type and doc_to_text"


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
        config = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
    """All texts of settings, each with its key at the top; BadInput where there is no end of values."""
    found, todo, seen = [], [("", settings)], 0
    while todo:
        key, value = todo.pop()
        if (seen := seen + 1) > MOST_VALUES:
            raise BadInput(
                f"{path} has more than {MOST_VALUES:,} values, anchors counted as often as they are used; "
                "give rows as data, and a task without such anchors"
            )
        if isinstance(value, dict):
            todo += [(key or str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            todo += [(key, inner) for inner in value]
        elif isinstance(value, str):
            found.append((key, value))
        elif value is not None and not isinstance(value, int | float):
            raise BadInput(f"{path} has a {type(value).__name__} under {key}; put it in quotation marks")
    return sorted(found)


def check_task(task: str, base: Path, trusts_code: bool = False) -> None:
    """Raise BadInput where `read_task` does, or a task needs a package that is not installed."""
    resolved(read_task(task, base, trusts_code))


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
    for key, form in FORMS.items():
        if not isinstance(settings.get(key) or form(), form):
            raise BadInput(
                f"{where} has {key} {settings[key]!r:.60}; give a {form.__name__}, as lm-eval has it"
            )
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
    listed = settings.get("metric_list") or [{"metric": "acc"}]
    if not any(_is_mean(one) for one in listed if isinstance(one, dict)):
        names = [str(one.get("metric")) for one in listed if isinstance(one, dict)]
        raise BadInput(
            f"{where} has metrics {names}; give at least one that is a mean over items where higher is "
            "better, such as acc or exact_match"
        )
    return {key: value for key, value in settings.items() if key not in DATA}


OTHER = {
    "brier_score", "f1", "mcc", "bleu", "chrf", "ter", "perplexity", "likelihood", "bypass",
    "word_perplexity", "byte_perplexity", "bits_per_byte",
}  # fmt: skip
"""Metrics of lm-eval that are no mean over items where nothing else is said."""


def _is_mean(metric: Mapping[str, Any]) -> bool:
    fallback = "other" if metric.get("metric") in OTHER else "mean"
    return metric.get("aggregation", fallback) == "mean" and metric.get("higher_is_better", True) is True
