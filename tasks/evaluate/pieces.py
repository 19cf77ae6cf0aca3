"""Partial scores of shards; put together in order they equal the scores of one process exactly.

A share of the work gives a part of the pieces. The scores are made of all of them in their order, whether one
process made them or many, so that they are equal to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.evaluate import perplexity
from resprout.tasks.evaluate.answers import Answers, answers
from resprout.tasks.evaluate.held_out import held_out
from resprout.tasks.evaluate.layers import layer_pairs
from resprout.tasks.evaluate.perplexity import Scored, Segment
from resprout.tasks.evaluate.prompts import Asked, ask
from resprout.tasks.evaluate.task import all_asked
from resprout.tasks.gguf.types import FILE as GGUF
from resprout.tasks.llama_cpp.model import LlamaCppModel
from resprout.tasks.models.load import load_for, load_tokenizer, placement_for
from resprout.tasks.models.served import ServedModel
from resprout.tasks.models.shape import Sizes, count, read_config, shape_of
from resprout.tasks.onnx_runtime.library import FILE as ONNX
from resprout.tasks.onnx_runtime.model import OnnxModel
from resprout.tasks.packed.checkpoint import load_served, packed, packed_by, weight_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "pieces.json"
SERVED: Mapping[str, Callable[[Path, int], ServedModel]] = {GGUF: LlamaCppModel, ONNX: OnnxModel}
"""What computes a model folder that holds a file of this name; transformers computes all others."""


@dataclass
class Pieces:
    """The model's sizes, sums over held-out text, each task's answers, and those to the prompts.

    `token_bytes`: of the whole text a token's mean.
    """

    sizes: dict[str, int]
    sources: list[str]
    token_bytes: float
    scored: Scored = field(default_factory=Scored)
    answers: dict[str, Answers] = field(default_factory=dict)
    asked: Asked | None = None


def make(job: Job[EvaluateConfig], inputs: Mapping[str, Path], progress: Progress) -> Pieces:
    """The pieces of the job's share; loads the model, and for divergence the dense one."""
    config = job.config.perplexity
    tokenizer = load_tokenizer(inputs["model"], job.trust_remote_code)
    text = held_out(inputs["text"], tokenizer, config)
    with _served(job, inputs["model"], 1 + ("dense" in inputs)) as (model, sizes):
        beside = None if isinstance(model, ServedModel) else model
        dense = load_for(job, inputs["dense"], beside=beside) if "dense" in inputs else None
        found = Pieces(asdict(sizes), text.sources, text.text_bytes / len(text.ids))
        stride = config.stride_tokens or config.window_tokens
        parts = perplexity.windows(text.ids, config.window_tokens, stride, text.bos, text.owners)
        layers = layer_pairs(model, dense) if dense is not None else None
        found.scored = perplexity.scored(model, parts, dense, config.kl_tokens, job.share, progress, layers)
        del layers
        del dense
        if tasks := all_asked(job.config.placed_suites, inputs):
            progress(0, 1, "evaluation tasks")
            found.answers = answers(model, tokenizer, tasks, job.seed, job.share, progress)
        if job.config.prompts and job.share.of(1):
            progress(0, 1, "prompts")
            found.asked = ask(model, tokenizer, job.config.prompts)
    return found


@contextmanager
def _served(job: Job[EvaluateConfig], folder: Path, models: int) -> Iterator[tuple[Any, Sizes]]:
    """The model as it is served, and its sizes: a file by its own runtime, which ends with the block.

    It is the first of so many `models` that share the devices.
    """
    served = next((one for name, one in SERVED.items() if (folder / name).is_file()), None)
    if served is None:
        model = load_served(
            folder,
            job.dtype,
            job.device,
            job.trust_remote_code,
            placement_for(job, folder, models=models, resident=packed(folder)),
        )
        yield model, _sizes(model, folder)
        return
    import torch

    file = served(folder, torch.get_num_threads())
    try:
        yield file, file.sizes
    finally:
        file.close()


def _sizes(model: PreTrainedModel, folder: Path) -> Sizes:
    """The sizes of a model in memory; of a checkpoint of few bits the bytes of its files."""
    if packed_by(read_config(folder)) is None:
        return count(model)
    shape = shape_of(model.config.to_dict())
    return Sizes(shape.params, shape.non_embedding_params, weight_bytes(folder))


def write(found: Pieces, folder: Path) -> None:
    """Keep pieces as JSON, in which numbers lose nothing."""
    (folder / FILE).write_text(json.dumps(asdict(found), sort_keys=True) + "\n")


def read(folders: Sequence[Path]) -> Pieces:
    """All pieces, of which each folder holds those of a share, in the order of the shares."""
    parts = [json.loads((folder / FILE).read_text()) for folder in folders]
    found = Pieces(parts[0]["sizes"], parts[0]["sources"], parts[0]["token_bytes"])
    for part in parts:
        found.scored.segments += [Segment(*one) for one in part["scored"]["segments"]]
        found.scored.layers += part["scored"]["layers"]
        for name, one in part["answers"].items():
            found.answers.setdefault(name, Answers(one["lm_eval_version"])).add(Answers(**one))
        if part["asked"] is not None:
            found.asked = Asked(**part["asked"])
    return found
