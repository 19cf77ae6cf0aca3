"""lm-eval task files: the shipped ones by name, or the user's own by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.schema import EVALUATION, shipped_tasks

TASK_ROLE = "task_"
"""Begins the roles of task data among a stage's inputs."""


def task_file(task: str, base: Path) -> Path:
    """Path of an lm-eval YAML: a shipped one by name, or the user's own, relative to `base`."""
    shipped = EVALUATION / f"{task}.yaml"
    if shipped.is_file():
        return shipped
    own = base / Path(task).expanduser()
    if own.suffix in (".yaml", ".yml") and own.is_file():
        return own
    raise BadInput(
        f"unknown evaluation task '{task}'; give one of {', '.join(shipped_tasks())}, or the path of an "
        "lm-eval YAML"
    )


def read_task(task: str, base: Path) -> dict[str, Any]:
    """The task's settings as plain data; one that is unknown or calls Python functions raises BadInput."""
    path = task_file(task, base)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())[:200]
        raise BadInput(f"{path} is not plain YAML ({what}); tags such as !function are not run") from None
    if not isinstance(config, dict) or "output_type" not in config:
        raise BadInput(f"{path} is not an lm-eval task: it needs at least task, output_type and doc_to_text")
    default = [{"metric": "acc"}, {"metric": "acc_norm"}]  # lm-eval's for multiple_choice
    listed = config.get("metric_list") or default
    metrics = [one.get("metric") for one in listed if isinstance(one, dict)]
    if config["output_type"] != "multiple_choice" or not {"acc", "acc_norm"} & set(metrics):
        raise BadInput(
            f"{path} has output_type {config['output_type']} and metrics {metrics}; give multiple_choice "
            "with acc or acc_norm, which is what zero-shot scores are made of"
        )
    if config.get("num_fewshot"):
        raise BadInput(
            f"{path} asks for {config['num_fewshot']} examples; leave num_fewshot out: scores are zero-shot"
        )
    if "include" in config:
        raise BadInput(f"{path} includes {config['include']}; write the settings of both into one file")
    return config
