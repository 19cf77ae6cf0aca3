"""Answers to the tasks of suites through lm-eval, offline, from local rows, by the model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resprout.configs.errors import BadInput
from resprout.tasks.core.job import Progress, Share
from resprout.tasks.evaluate.expressions import ExpressionFault
from resprout.tasks.evaluate.paired import CUT
from resprout.tasks.evaluate.ranking import METRIC, by_query, entry
from resprout.tasks.evaluate.task import EXAMPLES, SPLIT, Asked
from resprout.tasks.evaluate.task_files import CHOICES, WRITTEN
from resprout.tasks.models.served import ServedModel

if TYPE_CHECKING:
    from resprout.tasks.evaluate.language_model import Counting

BLOCK_ITEMS = 128
RANKED = "ranked"
"""Holds of an answered item what it says of passages."""
PROMPT_CHARS, ANSWER_CHARS = 400, 600
"""Of an item's prompt the end is kept, of its answer the beginning."""
NORMALISED, PLAIN = "acc_norm", "acc"


@dataclass
class Answers:
    """Answers to the items of one task, in their order.

    `right`: for each metric the score of each item, 1 or 0 where it is right or wrong. `items`: for people,
    the end of each prompt, what was to be answered, and what was. `prompts_cut` counts the requests whose
    beginning the model could not take.
    """

    lm_eval_version: str
    right: dict[str, list[float]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    prompts_cut: int = 0

    def add(self, more: Answers) -> None:
        """The items that follow."""
        for metric, values in more.right.items():
            self.right.setdefault(metric, []).extend(values)
        self.items += more.items
        self.prompts_cut += more.prompts_cut

    @property
    def headline(self) -> str:
        """The metric that counts: acc_norm where the task has it, else acc, else the first by name."""
        return next((name for name in (NORMALISED, PLAIN) if name in self.right), min(self.right))


def answers(
    model: PreTrainedModel | ServedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Asked],
    seed: int,
    share: Share,
    progress: Progress,
) -> dict[str, Answers]:
    """Answers to the share's blocks of `BLOCK_ITEMS` items, by task.

    Items of a block are batched together and with no others, so that no answer depends on the share.
    """
    from resprout.tasks.evaluate.language_model import language_model

    made, rows, blocks = dict[str, Any](), dict[str, Any](), list[tuple[Asked, range]]()
    for task in sorted(tasks, key=lambda one: one.name):
        made[task.name] = one = task.made()
        one.set_fewshot_seed(seed=seed)
        # lm-eval processes rows each time that it looks at them.
        rows[task.name], one.config.process_docs = one.eval_docs, None
        items = range(len(rows[task.name]))[: task.suite.limit]
        blocks += [(task, items[start : start + BLOCK_ITEMS]) for start in range(0, len(items), BLOCK_ITEMS)]
    mine = set(share.of(len(blocks)))
    found: dict[str, Answers] = {}
    lms: dict[int, Counting] = {}
    for index, (task, items) in enumerate(blocks):
        one = made[task.name]
        # lm-eval's own `samples` walks all rows for each block.
        one.dataset = {SPLIT: rows[task.name].select(items)}
        if index not in mine:
            _draw_examples(one, task.few_shot)
            continue
        size = task.suite.batch_size
        lm = lms.setdefault(size, language_model(model, tokenizer, size))
        found.setdefault(task.name, Answers(str(one.VERSION))).add(_answered(lm, task, one))
        progress(len(found), len(tasks), "evaluation tasks")
    return found


def _answered(lm: Counting, task: Asked, made: Any) -> Answers:
    """The answers to the rows that the task holds."""
    from lm_eval import evaluate

    if task.kind == WRITTEN:
        writing = made.config.generation_kwargs
        writing["max_gen_toks"] = min(writing["max_gen_toks"], lm.max_length // 2)
    lm.reset()
    # `simple_evaluate` looks through all of lm-eval's tasks first and describes the whole machine afterwards,
    # seconds each, and asks git for a commit where there may be none.
    try:
        outcome = evaluate(
            lm=lm,
            task_dict={"tasks": {task.name: made}, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=task.suite.chat,
            fewshot_as_multiturn=task.suite.chat,
            verbosity="ERROR",
        )
    except ExpressionFault as error:
        raise BadInput(f"evaluation task {task.name}: {error}") from None
    samples = sorted(outcome["samples"][task.name], key=lambda one: one["doc_id"])
    by_filter: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    found = Answers(str(made.VERSION), prompts_cut=lm.prompts_cut)
    means, better = _means(made), made.higher_is_better()
    for extract, kept in by_filter.items():
        ending = f"_{extract.replace('-', '_')}" if len(by_filter) > 1 else ""
        for metric in kept[0]["metrics"]:
            if metric in means and better.get(metric, True):
                found.right[f"{metric}{ending}"] = [float(one[metric]) for one in kept]
    first = next(iter(by_filter.values()))
    found.items = [_item(made, sample, lm.cut) for sample in first]
    if task.ranking is not None:
        for item, sample in zip(found.items, first, strict=True):
            item[RANKED] = entry(sample["doc"], [score for score, _ in sample["filtered_resps"]])
    return found


def by_items(found: Mapping[str, Answers], tasks: Sequence[Asked]) -> dict[str, Answers]:
    """The answers by the items that count: of tasks that rank, the queries."""
    counted = dict(found)
    for task in tasks:
        if task.ranking is not None and task.name in found:
            one = found[task.name]
            items, values = by_query([item[RANKED] for item in one.items])
            if not values:
                raise BadInput(
                    f"evaluation task {task.name} has no query with two passages of which one is relevant; "
                    "give rows with qid, query, docid, text and relevance"
                )
            counted[task.name] = Answers(one.lm_eval_version, {METRIC: values}, items, one.prompts_cut)
    return counted


def _means(made: Any) -> set[str]:
    """The metrics of a task whose value is the mean over items."""
    from lm_eval.api.metrics import mean

    return {name for name, aggregation in made.aggregation().items() if aggregation is mean}


def _draw_examples(made: Any, count: int) -> None:
    """Draw the examples of the task's rows as lm-eval would, so that those of later rows are the same."""
    if count:
        own = made.fewshot_cfg.split != EXAMPLES
        for row in made.eval_docs:
            made.sampler.sample(n=count, eval_doc=row if own else None)


def _item(made: Any, sample: Mapping[str, Any], cut: Mapping[str, bool]) -> dict[str, Any]:
    """An item for people: what was asked, what was to be answered, what was answered."""
    prompt, target, row = str(sample["arguments"][0][0]), sample["target"], sample["doc"]
    if made.OUTPUT_TYPE == CHOICES:
        choices = list(made.doc_to_choice(row))
        scores = [float(score) for score, _ in sample["filtered_resps"]][: len(choices)]
        if NORMALISED in sample["metrics"]:
            scores = [score / max(1, len(one)) for score, one in zip(scores, choices, strict=True)]
        if isinstance(target, str) and made.multiple_input:
            target = made.doc_to_text(row)
        answer = choices[scores.index(max(scores))]
        target = [
            choices[one] if isinstance(one, int) else one
            for one in (target if isinstance(target, list) else [target])
        ]
    elif made.OUTPUT_TYPE == WRITTEN:
        answer = sample["resps"][0][0]
    else:
        answer = "(as expected)" if sample["filtered_resps"][0][1] else "(something else)"
    told = " | ".join(map(str, target)) if isinstance(target, list) else str(target)
    found = {
        "prompt": prompt[-PROMPT_CHARS:],
        "target": told[:ANSWER_CHARS],
        "answer": str(answer)[:ANSWER_CHARS],
    }
    return found | ({"cut": cut[prompt]} if prompt in cut else {})


def accuracies(found: Mapping[str, Answers]) -> dict[str, float]:
    """Metrics `<task>_<metric>` with standard errors, and `<task>_cut`, of all items' answers.

    Accuracy over multiple-choice items by summed log-likelihood (acc) and by log-likelihood per byte of the
    choice (acc_norm), as lm-eval defines them; of written answers as the task's filters extract them.
    """
    metrics: dict[str, float] = {}
    for name, one in sorted(found.items()):
        for metric, right in one.right.items():
            items, value = len(right), sum(right) / len(right)
            spread = sum((score - value) ** 2 for score in right)
            metrics[f"{name}_{metric}"] = value
            metrics[f"{name}_{metric}_stderr"] = (spread / items / max(items - 1, 1)) ** 0.5
        if one.items and "cut" in one.items[0]:
            metrics[name + CUT] = sum(item["cut"] for item in one.items) / len(one.items)
    return metrics


def details(found: Mapping[str, Answers], tasks: Sequence[Asked]) -> dict[str, Any]:
    """Of each task by what it was asked, and which of its metrics counts."""
    return {
        task.name: {
            "capability": task.capability,
            "headline": f"{task.name}_{one.headline}",
            "metrics": [f"{task.name}_{metric}" for metric in sorted(one.right)],
            "items": len(one.items),
            "few_shot": task.few_shot,
            "chat": task.suite.chat,
            "lm_eval_version": one.lm_eval_version,
            "prompts_cut": one.prompts_cut,
        }
        for task in tasks
        if (one := found.get(task.name)) is not None
    }


def rows(found: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    """The items of all tasks in lines, with the score by which each counts."""
    for name, one in sorted(found.items()):
        for place, (item, score) in enumerate(zip(one.items, one.right[one.headline], strict=True)):
            yield {"task": name, "item": place, "score": score, **item}
