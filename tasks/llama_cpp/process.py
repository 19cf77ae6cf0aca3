"""A child process with llama.cpp in it (tasks/llama_cpp/worker.py), and what can be asked of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import save_file

from resprout.configs.errors import StageFailed
from resprout.tasks.gguf.types import FileType
from resprout.tasks.llama_cpp.library import require_llama_cpp

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORKER = "resprout.tasks.llama_cpp.worker"
"""Run by its path, so that it imports nothing of resprout."""
MEMORY_BYTES = 8 * 10**9
"""Address space beside twice the file: libraries, the context, logits of a batch."""
FILE_BYTES = 10**12
WORDS = 3
"""Last lines of what a process printed that are told where it ended without an answer."""


@dataclass(frozen=True)
class Loaded:
    """Rows of the vocabulary, the longest context of training, tokens that end a text, seconds of loading."""

    vocab: int
    longest: int
    ends: list[int]
    seconds: float


@dataclass(frozen=True)
class Timed:
    """Seconds of reading the prompt and of writing behind it, and the peak memory of the process so far."""

    prefill_seconds: float
    decode_seconds: float
    peak_memory_bytes: int


class LlamaCpp:
    """A process for one GGUF file; ends with the `with` block.

    What llama.cpp cannot do raises StageFailed, with its own last words; a missing extra raises BadInput.
    """

    def __init__(self, file: Path) -> None:
        require_llama_cpp()
        self._file = file
        self._scratch = TemporaryDirectory()
        self._said: IO[bytes] = TemporaryFile()  # noqa: SIM115
        worker = find_spec(WORKER)
        if worker is None or worker.origin is None:
            raise StageFailed(f"{WORKER} is missing; install resprout again")
        # Run elsewhere than in a checkout, whose folders would otherwise be importable.
        self._process = subprocess.Popen(
            [sys.executable, "-I", worker.origin], cwd=self._scratch.name,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
        )  # fmt: skip
        memory = MEMORY_BYTES + 2 * (file.stat().st_size if file.is_file() else 0)
        self._ask("limit", memory_bytes=memory, file_bytes=FILE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()
        self._scratch.cleanup()

    def load(self, context_tokens: int, threads: int, sequences: int = 1, shared: bool = False) -> Loaded:
        """Load the file, for `sequences` of so many tokens at a time; `shared`: of so many together."""
        given = {"context_tokens": context_tokens, "threads": threads, "batch": sequences, "shared": shared}
        self.loaded = Loaded(**self._ask("load", file=str(self._file.resolve()), **given))
        return self.loaded

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Logits at the positions of `ids` from `first` on: float32 [positions, vocabulary]."""
        size = self._ask("logits", ids=list(ids), first=first)["bytes"]
        found = np.empty(size // 4, dtype=np.float32)
        stream, into = self._process.stdout, found.data.cast("B")
        while stream is not None and into and (read := stream.readinto(into)):  # type: ignore[attr-defined]
            into = into[read:]
        return found.reshape(-1, self.loaded.vocab)

    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, in nats; whether it is the greedy one."""
        asked = {"context": list(context), "continuations": [list(one) for one in continuations]}
        return [(total, greedy) for total, greedy in self._ask("score", **asked)["scores"]]

    def greedy(self, ids: Sequence[int], tokens: int, stop: Sequence[str] = ()) -> list[int]:
        """The ids that greedy decoding adds, at most `tokens`, up to one that ends the text or a `stop`."""
        return list(self._ask("greedy", ids=list(ids), tokens=tokens, stop=list(stop))["ids"])

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text by the file's own tokenizer."""
        return list(self._ask("tokenize", text=text)["ids"])

    def times(self, prompt: Sequence[int], decode_tokens: int, sequences: int) -> Timed:
        """Time a prompt in each of `sequences`, and the tokens written behind it."""
        asked = {"prompt": list(prompt), "decode_tokens": decode_tokens, "sequences": sequences}
        return Timed(**self._ask("times", **asked))

    def quantize(
        self, target: Path, file: FileType, threads: int, importance: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Write the file to `target` in another type, by the importance of each tensor's input channels."""
        matrix = None
        if importance:
            matrix = str(Path(self._scratch.name) / "importance.safetensors")
            save_file(dict(importance), matrix)
        source, out = str(self._file.resolve()), str(target.resolve())
        embedding = None if file.embedding is None else GGMLQuantizationType[file.embedding].value
        types = {"kind": file.kind.value, "embedding": embedding}
        self._ask("quantize", source=source, target=out, threads=threads, matrix=matrix, **types)

    def _ask(self, verb: str, **given: Any) -> dict[str, Any]:
        asking, answers = self._process.stdin, self._process.stdout
        answer = b""
        with suppress(BrokenPipeError):
            if asking is not None and answers is not None:
                asking.write(json.dumps({"verb": verb, **given}).encode() + b"\n")
                asking.flush()
                answer = answers.readline()
        if not answer:
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip().splitlines()[-WORDS:]
            raise StageFailed(f"llama.cpp ended while it worked on {self._file.name} ({' '.join(words)})")
        found: dict[str, Any] = json.loads(answer)
        if fault := found.get("fault"):
            raise StageFailed(f"{self._file.name}: {fault}")
        return found
