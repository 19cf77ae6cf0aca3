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
from collections.abc import Callable, Mapping, Sequence
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

    from resprout.tasks.llama_cpp.process import Timed


@dataclass(frozen=True)
class MeasureRequest:
    """The model's folder and how it is measured; `warmup` runs come before the first that is timed."""

    folder: str
    dtype: str
    device: str
    trust_remote_code: bool
    points: Sequence[Sequence[int]]
    """For each point of the speeds tokens of the prompt, tokens behind it, and sequences at a time."""
    warmup: int
    threads: int | None
    max_memory: Mapping[str, int] | None = None
    """None: the model lies on the device as a whole. Else on all there are (`Job.max_memory`)."""


@dataclass(frozen=True)
class Ready:
    """Seconds until the libraries were there, of loading, and threads in use."""

    start_seconds: float
    load_seconds: float
    threads: int


@dataclass(frozen=True)
class Times:
    """Seconds of prompt and decoding by run and point, and the peak memory of the process so far in bytes."""

    seconds: list[list[tuple[float, float]]]
    peak_memory_bytes: int


class Measured:
    """A loaded model; prompts are the same fixed sequences of ids for every model."""

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.core.job import Job
        from resprout.tasks.models.load import placement_for
        from resprout.tasks.packed.checkpoint import load_served, packed

        if request.threads is not None:
            torch.set_num_threads(request.threads)
        self._wait = _waiter(request.device)
        began = time.perf_counter()
        folder = Path(request.folder)
        job = Job(None, device=request.device, dtype=request.dtype, max_memory=request.max_memory)
        placement = placement_for(job, folder, resident=packed(folder))
        self._model = load_served(folder, request.dtype, request.device, request.trust_remote_code, placement)
        self._wait()
        self.ready = Ready(start_seconds, time.perf_counter() - began, torch.get_num_threads())
        self._request = request
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` rounds: at each point a prefill, then greedy steps on its KV cache.

        The first generated token comes from the prefill and is timed with it; decoding times the forward
        passes after it.
        """
        found = [[self._run(*point) for point in self._request.points] for _ in range(runs)]
        return Times(found, peak_memory(self._request.device))

    def _run(self, prefill: int, decode: int, batch: int) -> tuple[float, float]:
        ids = _prompts(prefill, batch, self._model.config.vocab_size).to(self._request.device)
        return _run(self._model, ids, decode, self._wait)


class MeasuredFile:
    """A GGUF file in llama.cpp, in a process of its own, with the same prompts."""

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.llama_cpp.process import LlamaCpp

        threads = request.threads or torch.get_num_threads()
        self._request = request
        self._llama = LlamaCpp(Path(request.folder) / GGUF)
        room = max(prefill + decode for prefill, decode, _ in request.points)
        loaded = self._llama.load(room, threads, max(batch for *_, batch in request.points))
        self.ready = Ready(start_seconds, loaded.seconds, threads)
        self._vocab = loaded.vocab
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` rounds, as of `Measured`."""
        found = [[self._run(*point) for point in self._request.points] for _ in range(runs)]
        seconds = [[(one.prefill_seconds, one.decode_seconds) for one in row] for row in found]
        return Times(seconds, max(one.peak_memory_bytes for row in found for one in row))

    def _run(self, prefill: int, decode: int, batch: int) -> Timed:
        return self._llama.times(_prompts(prefill, 1, self._vocab)[0].tolist(), decode, batch)


class MeasuredGraph:
    """A graph in ONNX Runtime, with the same prompts; the logits of each position are timed too."""

    def __init__(self, request: MeasureRequest, start_seconds: float) -> None:
        import torch

        from resprout.tasks.onnx_runtime.session import Session

        threads = request.threads or torch.get_num_threads()
        self._request = request
        began = time.perf_counter()
        self._session = Session(Path(request.folder) / ONNX, threads)
        self.ready = Ready(start_seconds, time.perf_counter() - began, threads)
        self.times(request.warmup)

    def times(self, runs: int) -> Times:
        """Times of `runs` rounds, as of `Measured`."""
        found = [[self._run(*point) for point in self._request.points] for _ in range(runs)]
        return Times(found, peak_memory("cpu"))

    def _run(self, prefill: int, decode: int, batch: int) -> tuple[float, float]:
        ids = _prompts(prefill, batch, self._session.vocab).numpy()
        self._session.forget()
        began = time.perf_counter()
        token = self._session.read(ids)[:, -1:].argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(decode):
            token = self._session.read(token)[:, -1:].argmax(-1)
        return prefilled - began, time.perf_counter() - prefilled


SERVED: Mapping[str, type[MeasuredFile | MeasuredGraph]] = {GGUF: MeasuredFile, ONNX: MeasuredGraph}
"""What times a model folder that holds a file of this name; transformers computes all others."""


def _read_libraries() -> float:
    """Import what loading a model uses; seconds from the start of the process until it is there."""
    import transformers

    import resprout.tasks.models.load

    # Imported at their first use, which would else be timed as loading.
    _ = transformers.AutoModelForCausalLM, transformers.PreTrainedModel, resprout.tasks.models.load
    return time.time() - psutil.Process().create_time()


def _prompts(tokens: int, batch: int, vocab: int) -> Tensor:
    """Ids of the prompts: [batch, tokens]."""
    import torch

    return torch.arange(batch * tokens).reshape(batch, -1) * 7919 % vocab


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
        served = next((one for name, one in SERVED.items() if (folder / name).is_file()), None)
        measured = (served or Measured)(request, start_seconds)
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
