"""The measuring process: `python -m resprout.tasks.measure.worker REQUEST ANSWER`, JSON in and JSON out.

A process of its own, so that peak memory is this model's and nothing that ran before has warmed anything up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.tasks.cost import peak_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Request:
    """The model's folder and how it is measured."""

    folder: str
    dtype: str
    device: str
    trust_remote_code: bool
    prefill_tokens: int
    decode_tokens: int
    batch_size: int
    repeats: int
    warmup: int
    threads: int | None


@dataclass(frozen=True)
class Answer:
    """Seconds of each timed run, seconds of loading, peak memory in bytes, and the threads that were used."""

    load_seconds: float
    prefill_seconds: list[float]
    decode_seconds: list[float]
    peak_memory_bytes: int
    threads: int


def measure(request: Request) -> Answer:
    """Times of `repeats` prefills, each followed by `decode_tokens` greedy steps on its KV cache.

    The prompt is the same fixed sequence of ids for every model. The first generated token comes from the
    prefill and is timed with it; decoding times the `decode_tokens` forward passes after it.
    """
    import torch

    from resprout.tasks.models.load import load_model

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    began = time.perf_counter()
    model = load_model(Path(request.folder), request.dtype, request.device, request.trust_remote_code)
    wait = _waiter(request.device)
    wait()
    loaded = time.perf_counter() - began
    vocab = model.config.vocab_size
    ids = (
        torch.arange(request.batch_size * request.prefill_tokens).reshape(request.batch_size, -1)
        * 7919
        % vocab
    )
    ids = ids.to(request.device)
    runs = [_run(model, ids, request.decode_tokens, wait) for _ in range(request.warmup + request.repeats)]
    timed = runs[request.warmup :]
    return Answer(
        load_seconds=loaded,
        prefill_seconds=[prefill for prefill, _ in timed],
        decode_seconds=[decode for _, decode in timed],
        peak_memory_bytes=peak_memory(request.device),
        threads=torch.get_num_threads(),
    )


def _run(
    model: PreTrainedModel, ids: Tensor, decode_tokens: int, wait: Callable[[], None]
) -> tuple[float, float]:
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=model.config)
    with torch.no_grad():
        wait()
        began = time.perf_counter()
        token = model(ids, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
        wait()
        prefilled = time.perf_counter()
        for _ in range(decode_tokens):
            token = model(token, cache=cache, use_cache=True).logits[:, -1:].argmax(-1)
        wait()
        return prefilled - began, time.perf_counter() - prefilled


def _waiter(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize


if __name__ == "__main__":
    asked = Request(**json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(asdict(measure(asked))))
