"""Stage evaluate: one evaluator for all models of a run.

Lifecycle: load the model (and, for divergence, the dense one) once; size; perplexity and KL on the held-out
text; answers to the tasks of suites and to the prompts by the model in memory. Content: metrics.json;
details.json with the protocol, scores by source, distances by layer and what each task asked; samples.json,
from which two models are compared in pairs; items.jsonl, the tasks' items with the model's answers;
answers.json where there are prompts.

Inputs: `model`; `text`; `task_<name>` for each task; `dense` for all but the dense one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import EvaluateConfig, PerplexityConfig
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.core.stage import Reads, Volume, stage
from resprout.tasks.evaluate.losses import ITEMS
from resprout.tasks.evaluate.paired import MEAN

if TYPE_CHECKING:
    from resprout.tasks.evaluate.perplexity import Segment

LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval")


def perplexity_metric(config: PerplexityConfig) -> str:
    """Name of the perplexity metric; it carries the protocol, e.g. wikipedia_ppl_seq512."""
    return config.name + "_ppl" + _protocol(config)


def bits_metric(config: PerplexityConfig) -> str:
    """Name of the bits per byte, which models with other tokenizers can be compared by."""
    return config.name + "_bits_per_byte" + _protocol(config)


def kl_metric(config: PerplexityConfig) -> str:
    """Name of the divergence metric, in nats a token."""
    return config.name + "_kl_to_dense" + _protocol(config)


def lengths(config: EvaluateConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    judged = config.perplexity
    return {"evaluate.perplexity.window_tokens": judged.window_tokens + judged.bos}


ITEM_TOKENS = 64
"""Of a question with its answers; only the ratio between two numbers of questions counts."""


def _protocol(config: PerplexityConfig) -> str:
    stride = config.stride_tokens
    overlap = f"_stride{stride}" if stride not in (None, config.window_tokens) else ""
    return f"_seq{config.window_tokens}{overlap}{'_bos' if config.bos else ''}"


def tokens(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Tokens of the text and, roughly, of the questions; None where all are scored, however many."""
    suites = [one for one in (config.get("zero_shot"), *config.get("suites", ())) if one]
    text, limits = config["perplexity"]["limit_tokens"], [one["limit"] for one in suites]
    if text is None or None in limits:
        return None
    questions = sum(
        limit * (1 + (task.get("few_shot") or 0))
        for limit, suite in zip(limits, suites, strict=True)
        for task in suite["tasks"]
    )
    return float(text + ITEM_TOKENS * questions)


@stage(
    "evaluate-shard",
    kind="scores-shard",
    title="evaluate",
    libraries=LIBRARIES,
    seeded=True,
    tokens=tokens,
)
def evaluate_shard(
    job: Job[EvaluateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the pieces of the share, of which `evaluate` makes the scores."""
    from resprout.tasks.evaluate import pieces

    pieces.write(pieces.make(job, inputs, progress), workdir)


@stage(
    "evaluate",
    kind="scores",
    section="evaluate",
    reads={
        "model": Reads("model"),
        "dense": Reads("model", of="source"),
        "text": Reads("data", optional=True),
        "tasks": Reads("data", group=True),
    },
    reported=True,
    libraries=LIBRARIES,
    seeded=True,
    shard=evaluate_shard,
    lengths=lengths,
    tokens=tokens,
)
def evaluate(job: Job[EvaluateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the scores of `inputs["model"]`."""
    from resprout.tasks.evaluate import answers, perplexity, pieces
    from resprout.tasks.evaluate.task import all_asked

    config = job.config.perplexity
    shards = shards_in(inputs)
    found = pieces.read(shards) if shards else pieces.make(job, inputs, progress)
    metrics: dict[str, float] = dict(found.sizes)
    segments, compared = found.scored.segments, "dense" in inputs
    result = perplexity.total(segments, compared)
    metrics[perplexity_metric(config)] = result.perplexity
    metrics[bits_metric(config)] = result.bits_per_byte(found.token_bytes)
    if "dense" in inputs:
        metrics[kl_metric(config)] = result.mean_kl
    details: dict[str, Any] = {
        "perplexity": {
            **config.model_dump(mode="json", exclude={"text"}),
            "stride_tokens": config.stride_tokens or config.window_tokens,
            "scored_tokens": result.tokens,
            "compared_tokens": result.kl_tokens,
            "metric": perplexity_metric(config),
            "kl_metric": kl_metric(config),
        },
        "sources": {
            name: _of_source([one for one in segments if one.source == number], compared)
            for number, name in enumerate(found.sources)
        },
        "layer_distances": [sum(one) / len(one) for one in zip(*found.scored.layers, strict=True)],
    }
    tasks, counted = all_asked(job.config.placed_suites, inputs), {}
    if tasks:
        counted = answers.by_items(found.answers, tasks)
        metrics |= answers.accuracies(counted)
        about = answers.details(counted, tasks)
        averaged = sorted(about[task.name]["headline"] for task in tasks if task.averaged)
        if averaged:
            metrics[MEAN] = sum(metrics[name] for name in averaged) / len(averaged)
        details |= {"tasks": about, "averaged": averaged}
        with (workdir / ITEMS).open("w", encoding="utf-8") as file:
            for row in answers.rows(counted):
                file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    (workdir / "details.json").write_text(json.dumps(details, indent=1, sort_keys=True))
    right = {f"{name}_{metric}": one for name, task in counted.items() for metric, one in task.right.items()}
    least = config.window_tokens - 1
    samples = {
        "windows": _blocks(((one.window, one.nll, one.tokens) for one in segments), least),
        "right": right,
    }
    if compared:
        divergences = ((one.window, one.kl, one.compared) for one in segments if one.compared)
        samples["divergences"] = _blocks(divergences, least)
    (workdir / "samples.json").write_text(json.dumps(samples, sort_keys=True) + "\n")
    if found.asked is not None:
        text = json.dumps(asdict(found.asked), indent=1, ensure_ascii=False, sort_keys=True)
        (workdir / "answers.json").write_text(text + "\n", encoding="utf-8")


def _of_source(segments: Sequence[Segment], compared: bool) -> dict[str, float]:
    """Perplexity, tokens and, where the models were `compared` on some, KL of the text from one source."""
    from resprout.tasks.evaluate.perplexity import total

    if not segments:
        return {"tokens": 0}
    score = total(segments, compared)
    found = {"tokens": score.tokens, "perplexity": score.perplexity}
    return {**found, "kl": score.mean_kl} if score.kl_tokens else found


def _blocks(scored: Iterable[tuple[int, float, int]], least: int) -> list[list[float]]:
    """Sum over scored tokens and their number of each window, from parts (window, sum, tokens).

    Windows that overlap score few tokens each, and neighbours are alike: as many are one block as score
    `least` tokens together.
    """
    found, before = [[0.0, 0]], -1
    for window, total, tokens in scored:
        if window != before and found[-1][1] >= least:
            found.append([0.0, 0])
        before = window
        found[-1] = [found[-1][0] + total, found[-1][1] + tokens]
    return found


@stage(
    "evaluation_data",
    kind="evaluation-data",
    title="evaluation data",
    section="evaluate",
    reads={
        "dense": Reads("model", of="source"),
        "text": Reads("data", optional=True),
        "tasks": Reads("data", group=True),
    },
    libraries=("transformers", "tokenizers", "lm_eval"),
    computes=False,
    tokens=tokens,
)
def evaluation_data(
    job: Job[EvaluateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write how many tokens and items there are; BadInput where text or a task cannot be scored."""
    from resprout.tasks.evaluate.held_out import held_out
    from resprout.tasks.evaluate.task import all_asked, count_items, require_chat, require_first_token
    from resprout.tasks.models.load import load_tokenizer

    tokenizer = load_tokenizer(inputs["dense"], job.trust_remote_code)
    text = held_out(inputs["text"], tokenizer, job.config.perplexity)
    metrics = {"evaluation_tokens": len(text.ids)}
    if job.config.tasks:
        require_first_token(tokenizer)
        for task in all_asked(job.config.placed_suites, inputs):
            if task.suite.chat:
                require_chat(tokenizer)
            metrics[f"{task.name}_items"] = count_items(task)
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
