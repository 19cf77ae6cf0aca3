"""Measuring processes: `python -m resprout.tasks.measure.worker` reads the libraries and forks one a model.

A process of its own, so that peak memory is this model's and nothing that ran before has warmed anything up.
It is asked and answers over a socket, in lines of JSON; the sockets come over the one that is standard input.
The first line is the request; it is answered once the model is loaded and warm. Each further line is a number
of runs, answered with their times. A process ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from resprout.tasks.core.resources import peak_memory
from resprout.tasks.gguf.types import FILE as GGUF
from resprout.tasks.onnx_runtime.library import FILE as ONNX

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MeasureRequest:
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
    """Seconds until the libraries were there, of loading, and threads in use."""

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

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.compressed_tensors.checkpoint import load_served

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        self._wait = _waiter(request.device)
        began = time.perf_counter()
        self._model = load_served(
            Path(request.folder), request.dtype, request.device, request.trust_remote_code
        )
        self._wait()
        self.ready = Ready(start_seconds, time.perf_counter() - began, torch.get_num_threads())
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


class MeasuredFile:
    """A GGUF file in llama.cpp, in a process of its own, with the same prompt."""

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.llama_cpp.process import LlamaCpp

        threads = request.threads or torch.get_num_threads()
        self._request = request
        self._llama = LlamaCpp(Path(request.folder) / GGUF)
        room = request.prefill_tokens + request.decode_tokens
        loaded = self._llama.load(room, threads, request.batch_size)
        self.ready = Ready(start_seconds, loaded.seconds, threads)
        self._prompt = [at * 7919 % loaded.vocab for at in range(request.prefill_tokens)]
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` prefills, each followed by `decode_tokens` greedy steps, as of `Measured`."""
        asked = self._request.decode_tokens, self._request.batch_size
        found = [self._llama.times(self._prompt, *asked) for _ in range(runs)]
        return Times(
            prefill_seconds=[one.prefill_seconds for one in found],
            decode_seconds=[one.decode_seconds for one in found],
            peak_memory_bytes=max(one.peak_memory_bytes for one in found),
        )


class MeasuredGraph:
    """A graph in ONNX Runtime, with the same prompt; logits of each position are computed, and timed too."""

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.onnx_runtime.session import Session

        threads = request.threads or torch.get_num_threads()
        self._request = request
        began = time.perf_counter()
        self._session = Session(Path(request.folder) / ONNX, threads)
        self.ready = Ready(start_seconds, time.perf_counter() - began, threads)
        tokens = request.batch_size * request.prefill_tokens
        ids = torch.arange(tokens).reshape(request.batch_size, -1) * 7919 % self._session.vocab
        self._ids = ids.numpy()
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` prefills, each followed by `decode_tokens` greedy steps, as of `Measured`."""
        found = [self._run() for _ in range(runs)]
        return Times(
            prefill_seconds=[prefill for prefill, _ in found],
            decode_seconds=[decode for _, decode in found],
            peak_memory_bytes=peak_memory("cpu"),
        )

    def _run(self) -> tuple[float, float]:
        self._session.forget()
        began = time.perf_counter()
        token = self._session.read(self._ids)[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(self._request.decode_tokens):
            token = self._session.read(token)[:, -1:].argmax(-1)
        return prefilled - began, time.perf_counter() - prefilled


SERVED = {GGUF: MeasuredFile, ONNX: MeasuredGraph}
"""What times a model folder that holds a file of this name; transformers computes all others."""


def _read_libraries() -> float:
    """Import what loading a model uses; seconds from the start of the process until it is there."""
    import transformers

    import resprout.tasks.models.load

    # Imported at their first use, which would else be timed as loading.
    _ = transformers.AutoModelForCausalLM, transformers.PreTrainedModel, resprout.tasks.models.load
    return time.time() - psutil.Process().create_time()


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


def _serve(channel: socket.socket, start_seconds: float) -> NoReturn:
    """Answer each line of a socket, which is closed once the process has given its memory back."""
    lines = channel.makefile("rw", encoding="utf-8")

    def answer(found: Ready | Times) -> None:
        lines.write(json.dumps(asdict(found)) + "\n")
        lines.flush()

    try:
        request = MeasureRequest(**json.loads(lines.readline()))
        folder = Path(request.folder)
        served = next((one for name, one in SERVED.items() if (folder / name).is_file()), Measured)
        measured = served(request, start_seconds)
        answer(measured.ready)
        for line in lines:
            answer(measured.times(int(line)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    """Fork a process for each socket that comes over standard input; all end with this one."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    started, children = _read_libraries(), list[int]()
    try:
        with socket.socket(fileno=os.dup(sys.stdin.fileno())) as asking:
            while sockets := socket.recv_fds(asking, 1, 1)[1]:
                child = os.fork()
                if not child:
                    _serve(socket.socket(fileno=sockets[0]), started)
                children.append(child)
                os.close(sockets[0])
    finally:
        # None was waited for, so each number is still its own.
        for child in children:
            os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
