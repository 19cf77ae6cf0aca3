"""Answers that the dense model writes itself to the prompts of the selected rows, for recovery to train on.

Self-data distillation (Yang et al., arXiv 2402.13669, eq. 3 to 5; on pruned models Thangarasa et al., arXiv
2410.09982) is `targets: mixed` with `answers.reference: true`, on mathematics with `answers.result`: the
model rewrites a row's answer, which stays as it was where the rewritten one comes to another result. Its
wording of the prompt is ours, so that it goes through any template.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import SelectConfig
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.termination import Termination, deferred_termination
from resprout.tasks.data.chat import chat_texts
from resprout.tasks.data.read import read_rows
from resprout.tasks.data.template import ALPACA_HEADINGS, Template, encode_rows, is_cut
from resprout.tasks.models.generation import end_tokens, left_padded, padding_token
from resprout.tasks.models.load import load_for, load_tokenizer, own_generator
from resprout.tasks.models.shape import shape_of
from resprout.tasks.select.json_files import write_json, write_lines
from resprout.tasks.select.rows import Origin

Row = Mapping[str, Any]

ANSWERS, STATE = "answers.jsonl", "state.json"
CHECKPOINT_MINUTES = 10
GRAM, FEWEST_GRAMS, MOST_REPEATED = 4, 8, 0.5
"""An answer repeats itself where more than this share of its 4-grams, of 8 or more, stood in it before."""
EMPTY, CUT, REPEATING = "empty", "cut", "repeating itself"
OTHER_RESULT, NO_ROOM = "with another result", "without room"
"""Why an answer is not trained on. Cut: the model had not ended it where `max_len_tokens` did."""
UNBOUNDED = 2**30
HEADING_TOKENS = 32
"""Of the end of an answer, in which a heading is looked for: more than one takes."""
MOST_BATCHES = 2**20
"""Between the seeds of the batches of one run's seed and those of the next."""


class Question(NamedTuple):
    """A row's prompt as the model is given it, the tokens that its answer may take, and the row in words."""

    prompt: list[int]
    room: int
    row: str


class Answer(NamedTuple):
    """A generated answer: its text, its length in tokens, and why it is excluded, empty where it is used."""

    text: str
    tokens: int
    fault: str


def write(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write selected.jsonl with the answers as targets, answers.jsonl about each, summary.json, metrics.json.

    Raises:
        BadInput: not one row is left, or `answers.result` is found in no row's own answer.
    """
    config = job.config
    rows = [row for _, row in read_rows(inputs["selection"] / "selected.jsonl")]
    tokenizer = load_tokenizer(inputs["dense"], job.trust_remote_code)
    wanted = _results(rows, config.answers.result)
    template = asked_in(tokenizer, rows, config)
    model = load_for(job, inputs["dense"])
    asked = questions(tokenizer, rows, config, template, shape_of(model.config.to_dict()).max_positions)
    answers = _written(job, model, tokenizer, asked, template, progress)
    if config.answers.result is not None:
        answers = [
            _without_other_result(one, own, config.answers.result)
            for one, own in zip(answers, wanted, strict=True)
        ]
    faults = Counter(one.fault for one in answers if one.fault)
    instead = "original" if config.targets == "mixed" else ""
    used = [instead if one.fault else "self" for one in answers]
    if not any(used):
        raise BadInput(
            f"of {len(rows)} answers that the dense model wrote itself none can be trained on "
            f"({_counted(faults)}); raise select.max_len_tokens, give select.targets: mixed, which keeps the "
            "row's own answer there, or another select.template"
        )
    kept = [
        {**row, "output": one.text, "targets": use} if use == "self" else {**row, "targets": use}
        for row, one, use in zip(rows, answers, used, strict=True)
        if use
    ]
    encoded = encode_rows(tokenizer, kept, config.template, config.max_len_tokens)
    write_lines(
        workdir / "selected.jsonl",
        ({**row, "tokens": len(one)} for row, one in zip(kept, encoded, strict=True)),
    )
    write_lines(
        workdir / ANSWERS,
        (
            {"id": row["id"], "answer": one.text, "tokens": one.tokens, "fault": one.fault, "trained_on": use}
            for row, one, use in zip(rows, answers, used, strict=True)
        ),
    )
    tokens = {
        "answered_tokens": sum(map(len, encoded)),
        "answer_tokens": sum(len(one.response_ids) for one in encoded),
        "cut_rows": sum(is_cut(one, config.max_len_tokens, tokenizer.eos_token_id) for one in encoded),
    }
    about = {"targets": config.targets, "asked_in": template, "faults": dict(sorted(faults.items()))}
    _write_summary(inputs["selection"], workdir, about, Counter(used), tokens)


def asked_in(tokenizer: Any, rows: Sequence[Row], config: SelectConfig) -> Template:
    """The prompt form in which the dense model is asked: a chat model answers best in its own."""
    if config.answers.template is not None:
        return config.answers.template
    try:
        chat_texts(tokenizer, rows[:1])
    except BadInput:
        return config.template
    return "chat"


def questions(
    tokenizer: Any, rows: Sequence[Row], config: SelectConfig, template: Template, positions: int | None
) -> list[Question]:
    """The prompt of each row, with its own answer as a guide where the config says so.

    An answer may take what the row's plain prompt leaves of `max_len_tokens`, and the prompt that is given of
    the model's positions.
    """
    plain = encode_rows(tokenizer, rows, config.template, config.max_len_tokens)
    given = plain
    if config.answers.reference or template != config.template:
        put = [_guided(row) for row in rows] if config.answers.reference else rows
        given = encode_rows(tokenizer, put, template, UNBOUNDED)
    found = []
    for row, own, guided in zip(rows, plain, given, strict=True):
        room = config.max_len_tokens - len(own.prompt_ids)
        if positions is not None:
            room = min(room, positions - len(guided.prompt_ids))
        named = ", ".join(filter(None, (row["id"], Origin.of(row).place)))
        found.append(Question(guided.prompt_ids, max(0, room), named))
    return found


def _guided(row: Row) -> dict[str, Any]:
    given = str(row.get("input") or "")
    question = f"{row['instruction']}\n\n{given}" if given.strip() else row["instruction"]
    guide = f"{question}\n\nReference answer: {row['output']}\n\nGuided by it, answer in your own words."
    return {**row, "instruction": guide, "input": ""}


def _written(
    job: Job[SelectConfig],
    model: Any,
    tokenizer: Any,
    asked: Sequence[Question],
    template: Template,
    progress: Progress,
) -> list[Answer]:
    """An answer to each, in batches of prompts of about one length, the longest first.

    A batch draws from a seed of its own, so that what a checkpoint kept need not be written again.
    """
    by_length = sorted(range(len(asked)), key=lambda one: (-len(asked[one].prompt), one))
    open_ones = [one for one in by_length if asked[one].room]
    size, headings = job.config.answers.batch_rows, ALPACA_HEADINGS if template == "alpaca" else ()
    batches = [open_ones[start : start + size] for start in range(0, len(open_ones), size)]
    found = {one: Answer("", 0, NO_ROOM) for one in by_length if not asked[one].room}
    done = 0
    with nullcontext() if job.checkpoints is None else job.checkpoints.latest() as before:
        if before is not None:
            kept = parse_json((before / STATE).read_bytes(), STATE)
            done = kept["batches"]
            found = {int(one): Answer(*answer) for one, answer in kept["answers"].items()}
    saved = time.monotonic()
    with deferred_termination() as ending:
        for number in range(done, len(batches)):
            batch = [asked[one] for one in batches[number]]
            with own_generator(job.seed * MOST_BATCHES + number, job.device):
                tokens = generate(model, tokenizer, batch, job.config, headings, ending)
            if not ending.asked:
                judged = _judged(model, tokenizer, tokens, headings)
                found |= dict(zip(batches[number], judged, strict=True))
                progress(len(found), len(asked), "answers")
                done += 1
            if ending.asked or time.monotonic() - saved > 60 * CHECKPOINT_MINUTES:
                _keep(job, done, found)
                saved = time.monotonic()
            if ending.asked:
                break
    return [found[one] for one in range(len(asked))]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Question],
    config: SelectConfig,
    headings: Sequence[str] = (),
    ending: Termination | None = None,
) -> list[list[int]]:
    """Of each question the tokens of the answer, with the one that ends it where it is ended in its room.

    A model that goes on with one of the headings of its prompt is stopped there.
    """
    pad = padding_token(tokenizer)
    ids, mask = left_padded([one.prompt for one in batch], pad)
    ends = end_tokens(model, tokenizer)
    temperature = config.answers.temperature
    drawn: dict[str, Any] = {"do_sample": False}
    if temperature:
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = GenerationConfig(
        **drawn, num_beams=1, eos_token_id=sorted(ends) or None, pad_token_id=pad,
        max_new_tokens=max(one.room for one in batch),
    )  # fmt: skip
    made = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=how,
        logits_processor=LogitsProcessorList([_Finite([one.row for one in batch])]),
        stopping_criteria=StoppingCriteriaList(
            [_Ending(ending or Termination()), _AtHeading(tokenizer, headings, ids.shape[1])]
        ),
    )
    return [
        _ended(row[: one.room], ends)
        for row, one in zip(made[:, ids.shape[1] :].tolist(), batch, strict=True)
    ]


class _Finite(LogitsProcessor):
    """Fails where the model computes no number, and names the first row of the batch on which it does."""

    def __init__(self, rows: Sequence[str]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = scores.isnan().any(1)
        if bad.any():
            others = int(bad.sum()) - 1
            more = f", and {others} more of its batch" if others else ""
            raise StageFailed(
                "the dense model's logits are not finite while it answers the row "
                f"{self.rows[int(bad.int().argmax())]}{more}; try model.dtype: float32, or "
                "select.targets: original"
            )
        return scores


class _Ending(StoppingCriteria):
    """Stops in the middle of a batch, which is written again later, where the process is to end."""

    def __init__(self, ending: Termination) -> None:
        self.ending = ending

    def __call__(self, input_ids: Tensor, scores: Tensor, **others: Any) -> Any:
        return torch.full((len(input_ids),), self.ending.asked, device=input_ids.device)


class _AtHeading(StoppingCriteria):
    """Stops a row at a heading, by text: transformers' stop strings fail on tokenizers of words."""

    def __init__(self, tokenizer: Any, headings: Sequence[str], start: int) -> None:
        self.tokenizer, self.headings, self.start = tokenizer, headings, start

    def __call__(self, input_ids: Tensor, scores: Tensor, **others: Any) -> Any:
        found = [False] * len(input_ids)
        if self.headings:
            ends = input_ids[:, self.start :][:, -HEADING_TOKENS:].tolist()
            texts = (self.tokenizer.decode(one, skip_special_tokens=True) for one in ends)
            found = [any(heading in text for heading in self.headings) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def _ended(tokens: list[int], ends: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: end + 1]


def _judged(
    model: Any, tokenizer: Any, answers: Iterable[list[int]], headings: Sequence[str]
) -> list[Answer]:
    """Each answer without the blanks around it, up to the first heading, which ends it as its end does."""
    ends = end_tokens(model, tokenizer)
    found = []
    for tokens in answers:
        ended = bool(tokens) and tokens[-1] in ends
        written = tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        end = min((place for one in headings if (place := written.find(one)) >= 0), default=len(written))
        ended, text = ended or end < len(written), written[:end].strip()
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        fault = EMPTY if not text else REPEATING if repeats(words) else "" if ended else CUT
        found.append(Answer(text, len(words) + ended, fault))
    return found


def repeats(tokens: Sequence[int]) -> bool:
    """Whether an answer goes round in circles, by its 4-grams."""
    grams = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return len(grams) >= FEWEST_GRAMS and 1 - len(set(grams)) / len(grams) > MOST_REPEATED


def _results(rows: Sequence[Row], pattern: str | None) -> list[str | None]:
    """The result in each row's own answer; None without a match, and for all rows without a pattern."""
    if pattern is None:
        return [None] * len(rows)
    found = [result(row["output"], pattern) for row in rows]
    if not any(one is not None for one in found):
        raise BadInput(
            f"select.answers.result is {pattern!r}, which is found in the answer of none of {len(rows)} "
            "selected rows; give the expression behind which their results stand, or leave it out"
        )
    return found


def result(text: str, pattern: str) -> str | None:
    """The last match of the regular expression, or of its group if it has one; None without a match."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    return str(matches[-1][1 if matches[-1].re.groups else 0]).strip()


def _without_other_result(answer: Answer, wanted: str | None, pattern: str) -> Answer:
    if wanted is None or answer.fault or result(answer.text, pattern) == wanted:
        return answer
    return answer._replace(fault=OTHER_RESULT)


def _keep(job: Job[SelectConfig], batches: int, found: Mapping[int, Answer]) -> None:
    if job.checkpoints is None or not batches:
        return
    with tempfile.TemporaryDirectory(prefix="resprout-answers-") as folder:
        text = json.dumps({"batches": batches, "answers": found})
        (Path(folder) / STATE).write_text(text, encoding="utf-8")
        job.checkpoints.save(Path(folder), batches)


def _counted(faults: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {fault}" for fault, count in sorted(faults.items()))


def _write_summary(
    selection: Path,
    workdir: Path,
    about: Mapping[str, Any],
    used: Mapping[str, int],
    tokens: Mapping[str, int],
) -> None:
    """The selection's own summary with what became of its answers, and these counts as metrics."""
    summary = json.loads((selection / "summary.json").read_text(encoding="utf-8"))
    counts = {
        "self_written_rows": used.get("self", 0),
        "original_rows": used.get("original", 0),
        "dropped_rows": used.get("", 0),
        **tokens,
    }
    if not counts["self_written_rows"]:
        faults = _counted(about["faults"])
        warning = f"the dense model answered no row so that it can be trained on ({faults})"
        summary["warnings"] = [*summary["warnings"], f"{warning}: all keep their own answers"]
    write_json(workdir / "summary.json", {**summary, "answers": {**about, **counts}})
    write_json(workdir / "metrics.json", counts)
