"""lm-eval task files: the shipped ones by name, lm-eval's own by `lm_eval:NAME`, the user's own by path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import LM_EVAL, EvaluationTask
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


def read_task(task: str, base: Path) -> dict[str, Any]:
    """The task's settings as plain data; one that is unknown or cannot be scored raises BadInput.

    Python functions of lm-eval's own tasks stand in it by name; those of other files are refused.
    """
    if task.startswith(LM_EVAL):
        return _usable(lm_eval_task(task.removeprefix(LM_EVAL)), task)
    path = task_file(task, base)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} is not plain YAML ({what}); tags such as !function are not run") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path} is not an lm-eval task: {NEEDED}")
    if (included := config.pop("include", None)) is not None:
        if not isinstance(included, str) or not included.startswith(LM_EVAL):
            raise BadInput(
                f"{path} includes {included}; write the settings of both into one file, or include "
                f"{LM_EVAL}NAME, a task of lm-eval"
            )
        config = lm_eval_task(included.removeprefix(LM_EVAL)) | config
    return _usable(config, str(path))


def check_task(task: str, base: Path) -> None:
    """Raise BadInput where a task is unknown, cannot be scored, or needs a package that is not installed."""
    resolved(read_task(task, base))


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
    if kind not in (CHOICES, WRITTEN, CONTINUED):
        raise BadInput(
            f"{where} has output_type {kind}; give {CHOICES}, {WRITTEN} or {CONTINUED} (evaluate.perplexity "
            "is for text)"
        )
    sampled = settings.get("generation_kwargs") or {}
    if sampled.get("do_sample") or settings.get("repeats", 1) != 1:
        raise BadInput(
            f"{where} draws its answers; set do_sample: false and repeats: 1 in a file of your own, so that "
            "models compare item by item"
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
