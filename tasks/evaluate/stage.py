"""Door of evaluate: one evaluator for dense, pruned and recovered.

Lifecycle: load the model (and, for divergence, the dense one) once; size; perplexity and KL on the held-out
text; zero-shot accuracies on the model in memory. Content: metrics.json, and details.json with the protocol.

Inputs: `model`; `text`; `task_<name>` for each zero-shot task; `dense` for pruned and recovered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprout.configs.schema import EvaluateConfig, PerplexityConfig
from resprout.tasks.job import Job, Progress
from resprout.tasks.stage import stage

LIBRARIES = ("torch", "transformers", "tokenizers", "lm_eval")
TASK_ROLE = "task_"


def perplexity_metric(config: PerplexityConfig) -> str:
    """Name of the perplexity metric; it carries the protocol, e.g. wikipedia_ppl_seq512."""
    return config.name + "_ppl" + _protocol(config)


def kl_metric(config: PerplexityConfig) -> str:
    """Name of the divergence metric, in nats a token."""
    return config.name + "_kl_to_dense" + _protocol(config)


def _protocol(config: PerplexityConfig) -> str:
    stride = config.stride_tokens
    overlap = f"_stride{stride}" if stride not in (None, config.window_tokens) else ""
    return f"_seq{config.window_tokens}{overlap}{'_bos' if config.bos else ''}"


@stage("evaluate", kind="scores", libraries=LIBRARIES, seeded=True)
def evaluate(job: Job[EvaluateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the scores of `inputs["model"]`."""
    from resprout.tasks.evaluate import perplexity, zero_shot
    from resprout.tasks.evaluate.held_out import held_out
    from resprout.tasks.models.load import load_model, load_tokenizer
    from resprout.tasks.models.size import count

    config = job.config.perplexity
    tokenizer = load_tokenizer(inputs["model"])
    ids, bos = held_out(inputs["text"], tokenizer, config)
    model = load_model(inputs["model"], job.dtype, job.device, job.trust_remote_code)
    dense = (
        load_model(inputs["dense"], job.dtype, job.device, job.trust_remote_code)
        if "dense" in inputs
        else None
    )
    sizes = count(model)
    metrics: dict[str, float] = {
        "params": sizes.params,
        "non_embedding_params": sizes.non_embedding_params,
        "bytes": sizes.bytes,
    }
    parts = perplexity.windows(ids, config.window_tokens, config.stride_tokens or config.window_tokens, bos)
    result = perplexity.score(model, parts, dense, config.kl_tokens, progress)
    metrics[perplexity_metric(config)] = result.perplexity
    if dense is not None:
        metrics[kl_metric(config)] = result.mean_kl
    del dense
    details: dict[str, Any] = {
        "perplexity": {
            **config.model_dump(mode="json", exclude={"text"}),
            "stride_tokens": config.stride_tokens or config.window_tokens,
            "scored_tokens": result.tokens,
            "compared_tokens": result.kl_tokens,
            "metric": perplexity_metric(config),
            "kl_metric": kl_metric(config),
        },
    }
    if job.config.zero_shot is not None:
        progress(0, 1, "zero-shot tasks")
        zero = job.config.zero_shot
        tasks = [zero_shot.task(one.name, inputs[TASK_ROLE + one.name]) for one in zero.tasks]
        found, about = zero_shot.accuracies(model, tokenizer, tasks, zero.limit, zero.batch_size, job.seed)
        averaged = zero_shot.headline(found, sorted(about))
        found["zero_shot_mean_acc"] = sum(found[name] for name in averaged) / len(averaged)
        metrics.update(found)
        details["zero_shot"] = {"tasks": about, "averaged": averaged, "limit": zero.limit}
        progress(1, 1, "zero-shot tasks")
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    (workdir / "details.json").write_text(json.dumps(details, indent=1, sort_keys=True))
