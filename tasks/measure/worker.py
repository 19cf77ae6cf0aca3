"""The measuring process: `python -m resprout.tasks.measure.worker`, lines of JSON in and out.

A process of its own, so that peak memory is this model's and nothing that ran before has warmed anything up.
The first line is the request; it is answered once the model is loaded and warm. Each further line is a number
of runs, answered with their times. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from resprout.tasks.cost import peak_memory

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Request:
    """The model's folder and how it is measured; `warmup` runs come before the first that is timed."""

    folder: str
    dtype: str
    device: str
    trust_remote_code: bool
    prefill_tokens: int
    decode_tokens: int
    batch_size: int
    warmup: int
    threads: int | None


@dataclass(frozen=True)
class Ready:
    """Seconds from the start of the process to the libraries being there, of loading, and threads in use."""

    start_seconds: float
    load_seconds: float
    threads: int


@dataclass(frozen=True)
class Times:
    """Seconds of each run, and the peak memory of the process so far in bytes."""

    prefill_seconds: list[float]
    decode_seconds: list[float]
    peak_memory_bytes: int


class Measured:
    """A loaded model and the prompt, the same fixed sequence of ids for every model."""

    def __init__(self, request: Request) -> None:
        import torch
        import transformers

        from resprout.tasks.models.load import load_model

        # Imported at their first use, which would else be timed as loading.
        _ = transformers.AutoModelForCausalLM, transformers.PreTrainedModel
        if request.threads is not None:
            torch.set_num_threads(request.threads)
        self._wait = _waiter(request.device)
        started = time.time() - psutil.Process().create_time()
        began = time.perf_counter()
        self._model = load_model(
            Path(request.folder), request.dtype, request.device, request.trust_remote_code
        )
        self._wait()
        self.ready = Ready(started, time.perf_counter() - began, torch.get_num_threads())
        self._request = request
        ids = torch.arange(request.batch_size * request.prefill_tokens).reshape(request.batch_size, -1)
        self._ids = (ids * 7919 % self._model.config.vocab_size).to(request.device)
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` prefills, each followed by `decode_tokens` greedy steps on its KV cache.

        The first generated token comes from the prefill and is timed with it; decoding times the
        `decode_tokens` forward passes after it.
        """
        steps = self._request.decode_tokens
        seconds = [_run(self._model, self._ids, steps, self._wait) for _ in range(runs)]
        return Times(
            prefill_seconds=[prefill for prefill, _ in seconds],
            decode_seconds=[decode for _, decode in seconds],
            peak_memory_bytes=peak_memory(self._request.device),
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


def main() -> None:
    """Answer on what was stdout, which belongs to the answers alone: what libraries print goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def answer(found: Ready | Times) -> None:
            answers.write(json.dumps(asdict(found)) + "\n")
            answers.flush()

        measured = Measured(Request(**json.loads(sys.stdin.readline())))
        answer(measured.ready)
        for line in sys.stdin:
            answer(measured.times(int(line)))


if __name__ == "__main__":
    main()
