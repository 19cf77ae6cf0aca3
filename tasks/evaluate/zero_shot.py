"""Zero-shot accuracies through lm-eval, offline, from local rows, on the model that is in memory."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import Progress, Share
from resprout.tasks.llama_cpp.model import LlamaCppModel

REPORTED = ("acc", "acc_norm")
SPLIT = "validation"
BLOCK_ITEMS = 128


@dataclass
class Answers:
    """For each metric of one task whether each item was answered right, in the order of the items."""

    lm_eval_version: str
    right: dict[str, list[float]] = field(default_factory=dict)

    def add(self, more: Mapping[str, list[float]]) -> None:
        """The items that follow."""
        for metric, values in more.items():
            self.right.setdefault(metric, []).extend(values)


def answers(
    model: PreTrainedModel | LlamaCppModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[dict[str, Any]],
    limit: int | None,
    batch_size: int,
    seed: int,
    share: Share,
    progress: Progress,
) -> dict[str, Answers]:
    """Answers to the share's blocks of `BLOCK_ITEMS` items, by task; `tasks` come from `task`.

    Items of a block are batched together and with no others, so that no answer depends on the share.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    _hush()

    class Quiet(HFLM):
        """lm-eval draws its own bars whatever the environment says; ours are the only ones here."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

    class Served(Quiet):
        """A file in llama.cpp, which reads the context that an item's choices share only once."""

        def _loglikelihood_tokens(self, requests: Any, **others: Any) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = []
            cut = (_cut(context, choice, self.max_length) for _, context, choice in requests)
            for context, group in itertools.groupby(cut, key=lambda one: one[0]):
                found += self.model.score(context, [choice for _, choice in group])
            return found

    kind = Served if isinstance(model, LlamaCppModel) else Quiet
    lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=_max_length(model))
    # `simple_evaluate` looks through all of lm-eval's tasks first and describes the whole machine afterwards,
    # seconds each, and asks git for a commit where there may be none.
    loaded = TaskManager(include_defaults=False).load(tasks)
    blocks = list[tuple[str, range]]()
    for name, made in sorted(loaded["tasks"].items()):
        made.set_fewshot_seed(seed=seed)
        items = range(len(made.dataset[SPLIT]))[:limit]
        blocks += [(name, items[start : start + BLOCK_ITEMS]) for start in range(0, len(items), BLOCK_ITEMS)]
    mine = share.of(len(blocks))
    found = dict[str, Answers]()
    rows = {name: made.dataset[SPLIT] for name, made in loaded["tasks"].items()}
    for name, items in (blocks[index] for index in mine):
        made = loaded["tasks"][name]
        # lm-eval's own `samples` walks all rows for each block.
        made.dataset = {SPLIT: rows[name].select(items)}
        outcome = evaluate(
            lm=lm,
            task_dict={**loaded, "tasks": {name: made}},
            bootstrap_iters=0,
            log_samples=True,
            verbosity="ERROR",
        )
        kept = [one for one in outcome["samples"][name] if one["filter"] == "none"]
        right = {
            metric: [float(one[metric]) for one in kept] for metric in REPORTED if kept and metric in kept[0]
        }
        found.setdefault(name, Answers(str(outcome["versions"].get(name)))).add(right)
        progress(len(found), len({blocks[index][0] for index in mine}), "zero-shot tasks")
    return found


def accuracies(found: Mapping[str, Answers]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics `<task>_acc`, `<task>_acc_norm` with standard errors, and details, of all items' answers.

    Accuracy over multiple-choice items by summed log-likelihood (acc) and by log-likelihood per byte of the
    choice (acc_norm), as lm-eval defines them.
    """
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, one in sorted(found.items()):
        for metric, right in one.right.items():
            items, value = len(right), sum(right) / len(right)
            metrics[f"{name}_{metric}"] = value
            metrics[f"{name}_{metric}_stderr"] = (value * (1 - value) / max(items - 1, 1)) ** 0.5
            details[name] = {"items": items, "lm_eval_version": one.lm_eval_version}
    return metrics, details


def headline(metrics: Mapping[str, float], tasks: list[str]) -> list[str]:
    """For each task the metric that is averaged: acc_norm where the task has it, else acc."""
    return [f"{task}_acc_norm" if f"{task}_acc_norm" in metrics else f"{task}_acc" for task in tasks]


def task(name: str, folder: Path) -> dict[str, Any]:
    """An lm-eval task called `name` from an acquired folder: task.json with its settings, rows.jsonl."""
    return {
        "num_fewshot": 0,
        **json.loads((folder / "task.json").read_text(encoding="utf-8")),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {SPLIT: str(folder / "rows.jsonl")}},
        "validation_split": SPLIT,
        "test_split": None,
        "training_split": None,
    }


def require_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput where the tokenizer has no token that lm-eval could put in front of an empty context."""
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise BadInput(
            "evaluate.zero_shot needs a tokenizer that names a BOS or an EOS token, and the model's names "
            "neither; set eos_token in its tokenizer_config.json, or leave zero_shot out"
        )


def count_items(name: str, folder: Path, limit: int | None) -> int:
    """How many items the task has, at most `limit`; BadInput where its templates do not fit one of them."""
    from lm_eval.api.task import ConfigurableTask

    _hush()
    item = 0
    try:
        made = ConfigurableTask(config=task(name, folder))
        for row in itertools.islice(made.eval_docs, limit):
            item += 1
            made.doc_to_text(row)
            if made.OUTPUT_TYPE == "multiple_choice":
                _require_answer(made.doc_to_choice(row), made.doc_to_target(row))
    except Exception as error:
        # Templates fail in as many types as there are templates; lm-eval itself tries the first row.
        what = " ".join(str(error).split())[:200]
        raise BadInput(
            f"evaluation task {name} does not fit row {max(item, 1)} of its data ({type(error).__name__}: "
            f"{what}); fix the task's YAML, or leave such rows out by `where`"
        ) from error
    return item


def _require_answer(choices: Any, target: Any) -> None:
    for answer in target if isinstance(target, list) else [target]:
        if answer not in (range(len(choices)) if isinstance(answer, int) else choices):
            raise ValueError(f"the answer {answer!r} is none of the choices {list(choices)!r}")


def _cut(context: Sequence[int], choice: Sequence[int], longest: int) -> tuple[list[int], list[int]]:
    """As much of the end of both as a model reads at once; of it the choice."""
    kept = [*context, *choice][-(longest + 1) :]
    own = min(len(choice), len(kept) - 1)
    return kept[:-own], kept[-own:]


def _hush() -> None:
    for name in ("lm-eval", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _max_length(model: PreTrainedModel | LlamaCppModel) -> int:
    return min(int(getattr(model.config, "max_position_embeddings", 1024)), 1024)
