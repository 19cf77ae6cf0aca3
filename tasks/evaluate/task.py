"""An lm-eval task over acquired rows: made from a folder, tried on every row before a weight is loaded."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from resprout.configs.errors import BadInput
from resprout.configs.schema import EvaluationTask, SuiteConfig
from resprout.tasks.data.chat import NO_CHAT, chat_texts
from resprout.tasks.evaluate import checks, expressions, templates
from resprout.tasks.evaluate.lm_eval_tasks import resolved
from resprout.tasks.evaluate.ranking import PAIRWISE, check_rows, graded, pairs, ranking_of
from resprout.tasks.evaluate.task_files import (
    CHOICES,
    LENGTHS,
    TASK_ROLE,
    WRITTEN,
    capability_of,
    few_shot_of,
    require_examples,
)

SPLIT, EXAMPLES = "validation", "examples"
NEW_TOKENS = 1024
"""Of an answer where neither config nor task says how many; lm-eval's 256 cut many."""


@dataclass(frozen=True)
class Asked:
    """A task of a suite, and what it is asked by."""

    name: str
    capability: str
    suite: SuiteConfig
    few_shot: int
    settings: Mapping[str, Any]
    """lm-eval's, with files of ours for the data set."""

    @property
    def rows(self) -> Path:
        """The file of its rows."""
        return Path(self.settings["dataset_kwargs"]["data_files"][SPLIT])

    @property
    def kind(self) -> str:
        return str(self.settings["output_type"])

    @property
    def ranking(self) -> str | None:
        """How it ranks passages; None where it does not."""
        return ranking_of(self.settings)

    @property
    def averaged(self) -> bool:
        """Whether its accuracy is one of those that are averaged."""
        return self.kind == CHOICES and self.few_shot == 0 and self.ranking is None

    def made(self) -> Any:
        """lm-eval's task object."""
        from lm_eval.api.registry import metric_registry
        from lm_eval.api.task import ConfigurableTask

        hush()
        checks.register()
        templates.confine()
        expressions.confine()
        listed = self.settings.get("metric_list") or ()
        for metric in listed if self.settings.get("process_results") is None else ():
            # Of others lm-eval would load and run a script from a hub.
            if isinstance(metric["metric"], str) and metric["metric"] not in metric_registry:
                raise BadInput(
                    f"evaluation task {self.name} has the metric {metric['metric']}, which is none of "
                    f"lm-eval's; give one of {', '.join(sorted(metric_registry))}"
                )
        given = resolved(dict(self.settings))
        if self.ranking is not None:
            given["process_docs"] = pairs if self.ranking == PAIRWISE else graded
        return ConfigurableTask(config=given)


def asked(place: str, suite: SuiteConfig, task: EvaluationTask, folder: Path) -> Asked:
    """The task whose rows and settings lie in a folder that `acquire_task` left."""
    settings = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    few = few_shot_of(place, task, settings)
    files = {SPLIT: str(folder / "rows.jsonl")}
    shown = dict(settings.get("fewshot_config") or {})
    shown.pop("split", None)
    if task.examples is not None:
        files[EXAMPLES] = str(folder / "examples.jsonl")
        shown.pop("samples", None)
    more: dict[str, Any] = {}
    if settings["output_type"] == WRITTEN:
        writing = settings.get("generation_kwargs") or {}
        own = next((writing[name] for name in LENGTHS if name in writing), NEW_TOKENS)
        kept = {name: value for name, value in writing.items() if name not in LENGTHS}
        kept.setdefault("until", [settings.get("fewshot_delimiter", "\n\n")])
        more["generation_kwargs"] = kept | {
            "do_sample": False, "temperature": 0.0, "max_gen_toks": suite.max_new_tokens or own,
        }  # fmt: skip
    return Asked(
        name=task.name,
        capability=capability_of(task, settings),
        suite=suite,
        few_shot=few,
        settings={
            **settings,
            **more,
            "task": task.name,
            "num_fewshot": few,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "validation_split": SPLIT,
            "fewshot_split": EXAMPLES if EXAMPLES in files else None,
            "fewshot_config": shown or None,
        },
    )


def all_asked(suites: Mapping[str, SuiteConfig], inputs: Mapping[str, Path]) -> list[Asked]:
    """The tasks of all suites, by the inputs of a stage."""
    return [
        asked(place, suite, task, inputs[TASK_ROLE + task.name])
        for place, suite in suites.items()
        for task in suite.tasks
    ]


def count_items(asked: Asked) -> int:
    """How many items are scored; BadInput where the task does not fit one, or has too few examples."""
    item = 0
    try:
        if asked.ranking is not None:
            check_rows(asked.name, asked.rows)
        made = asked.made()
        checked = [name for name in made.aggregation() if name in checks.ASKED]
        for row in itertools.islice(made.eval_docs, asked.suite.limit):
            item += 1
            text = made.doc_to_text(row)
            if made.OUTPUT_TYPE == CHOICES:
                # Where the choices are contexts, the text is the right one's number.
                answer = text if made.multiple_input else made.doc_to_target(row)
                _require_answer(made.doc_to_choice(row), answer)
            elif not callable(made.config.process_results):
                target = made.doc_to_target(row)
                for metric in checked:
                    _check_reference(asked, metric, item, str(target))
        if asked.kind == WRITTEN and not callable(made.config.process_results):
            _score_nothing(made)
        if asked.few_shot:
            _require_examples(asked, made)
            made.set_fewshot_seed(0)
            made.fewshot_context(made.eval_docs[0], num_fewshot=asked.few_shot)
    except templates.TemplateFault as error:
        raise _unfit(asked, item, str(error)) from error
    except BadInput:
        raise
    except Exception as error:
        # What templates give fails in as many types as there are; lm-eval itself tries the first row.
        what = " ".join(str(error).split())[:200]
        raise _unfit(asked, item, f"{type(error).__name__}: {what}") from error
    return item


def _unfit(asked: Asked, item: int, why: str) -> BadInput:
    return BadInput(
        f"evaluation task {asked.name} does not fit row {max(item, 1)} of its data, or its examples ({why}); "
        "fix the task's YAML, or leave such rows out by `where`"
    )


def _score_nothing(made: Any) -> None:
    """Score an empty answer to the first row; raises what filters and metrics do that are set wrong."""
    from lm_eval.api.instance import Instance

    row = made.eval_docs[0]
    one = Instance("generate_until", row, ("", {}), 0, resps=[""])
    made._instances = [one]
    made.apply_filters()
    for answer in one.filtered_resps.values():
        made.process_results(row, [answer])


def _require_examples(asked: Asked, made: Any) -> None:
    """Raise BadInput where there are fewer examples than are shown.

    Of a task's own rows the one that is asked is none; of a list in its YAML lm-eval draws one more as well.
    """
    shown = asked.settings["fewshot_config"] or {}
    listed_in_order = "samples" in shown and shown.get("sampler") == "first_n"
    spare = 0 if asked.settings["fewshot_split"] or listed_in_order else 1
    require_examples(asked.name, asked.few_shot, len(made.sampler.df) - spare)


def _check_reference(asked: Asked, metric: str, item: int, reference: str) -> None:
    """Raise BadInput where one of our checks could not read what it is to check."""
    try:
        checks.ASKED[metric](reference)
    except ValueError as error:
        raise BadInput(
            f"evaluation task {asked.name}: for row {item} doc_to_target, {asked.settings['doc_to_target']}, "
            f"gives {error}; mend the row, or leave it out by `where`"
        ) from None


def _require_answer(choices: Any, target: Any) -> None:
    for answer in target if isinstance(target, list) else [target]:
        if answer not in (range(len(choices)) if isinstance(answer, int) else choices):
            raise ValueError(f"the answer {answer!r} is none of the choices {list(choices)!r}")


def require_first_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput where the tokenizer has no token that lm-eval could put in front of an empty context."""
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise BadInput(
            "evaluate.zero_shot and suites need a tokenizer that names a BOS or an EOS token, and the "
            "model's names neither; set eos_token in its tokenizer_config.json, or leave them out"
        )


def require_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BadInput where there is no chat template, or it does not render a question in time."""
    fault = NO_CHAT
    if getattr(tokenizer, "chat_template", None):
        try:
            chat_texts(tokenizer, [{"instruction": "Is it?", "input": "", "output": "Yes."}])
            return
        except BadInput as error:
            fault = str(error).partition(";")[0]
    raise BadInput(f"a suite has chat: true, but {fault}; set chat: false")


def hush() -> None:
    """Keep lm-eval's log to errors, and the bars of data sets, which are read in a moment, away."""
    import datasets

    datasets.disable_progress_bars()
    for name in ("lm-eval", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
