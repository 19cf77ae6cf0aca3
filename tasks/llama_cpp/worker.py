"""The child process that holds llama.cpp: `python -I worker.py`, asked and answering in lines of JSON.

It is run by its path, imports nothing of resprout, and limits itself before it opens a file: what it loads
may come from outside. Logits follow their answer as raw float32, row after row.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
from safetensors.numpy import load_file

TOGETHER = 63
"""Most tokens of several continuations at once.

From 64 on llama.cpp computes attention by another kernel, whose rounding would depend on the company.
"""


class Model:
    """A loaded model and its context, which holds `context_tokens` in `batch` sequences.

    `shared`: the sequences share that room, so that what several begin with is held once.
    """

    def __init__(
        self, file: str, context_tokens: int, threads: int, batch: int = 1, shared: bool = False
    ) -> None:
        self._ffi, self._lib = get_ffi(), get_lib()
        how = self._lib.llama_model_default_params()
        how.n_gpu_layers = 0
        how.check_tensors = True
        self._model = self._lib.llama_model_load_from_file(file.encode(), how)
        if self._model == self._ffi.NULL:
            raise SystemExit("llama.cpp cannot load the file")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.longest = int(self._lib.llama_model_n_ctx_train(self._model))
        settings = self._lib.llama_context_default_params()
        settings.kv_unified = shared
        room = context_tokens if shared else context_tokens * batch
        settings.n_ctx = room
        settings.n_batch = max(room, 64)
        settings.n_ubatch = 512
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self._context = self._lib.llama_init_from_model(self._model, settings)
        if self._context == self._ffi.NULL:
            raise SystemExit(f"llama.cpp cannot make a context of {context_tokens} tokens")
        self._room, self._sequences = settings.n_batch, batch
        self._batch = self._lib.llama_batch_init(self._room, 0, 1)

    def logits(self, ids: Sequence[int], first: int) -> memoryview:
        """Logits from position `first` on: float32 [positions, vocabulary], good until it computes again."""
        self._forget()
        self._decode([(token, at, 0, at >= first) for at, token in enumerate(ids)])
        # Rows that were wanted stand one behind the other.
        begin = self._lib.llama_get_logits_ith(self._context, first)
        return memoryview(self._ffi.buffer(begin, 4 * self.vocab * (len(ids) - first)))

    def score(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind a context, and whether greedy decoding would give it.

        The context is read once, and continuations together, each in a sequence that begins with it, of which
        the model has been loaded with at least two.
        """
        self._forget()
        last = len(context) - 1
        self._decode([(token, at, 0, at == last) for at, token in enumerate(context)])
        begun = self._row(last, 4 * self.vocab).copy()
        found: list[tuple[float, bool]] = []
        for group in self._groups(continuations, min(TOGETHER, self._room - len(context))):
            entries = [
                (token, len(context) + at, sequence, True)
                for sequence, tokens in enumerate(group, 1)
                for at, token in enumerate(tokens[:-1])
            ]
            if entries:
                self._begin_with(len(context), len(group))
                self._decode(entries)
            place = 0
            for tokens in group:
                rows = [begun, *(self._row(place + at, 4 * self.vocab) for at in range(len(tokens) - 1))]
                place += len(tokens) - 1
                total = sum(_log_probability(row, token) for row, token in zip(rows, tokens, strict=True))
                greedy = all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True))
                found.append((total, greedy))
        return found

    def _groups(self, continuations: Sequence[Sequence[int]], room: int) -> Iterator[list[Sequence[int]]]:
        """Continuations that the context holds together, in their order."""
        group: list[Sequence[int]] = []
        for tokens in continuations:
            needed = sum(len(one) - 1 for one in group) + len(tokens) - 1
            if group and (len(group) == self._sequences - 1 or needed > room):
                yield group
                group = []
            group.append(tokens)
        yield group

    def _begin_with(self, tokens: int, sequences: int) -> None:
        """Let so many sequences begin with the first, and forget what they held."""
        memory = self._lib.llama_get_memory(self._context)
        for sequence in range(1, sequences + 1):
            self._lib.llama_memory_seq_rm(memory, sequence, -1, -1)
            self._lib.llama_memory_seq_cp(memory, 0, sequence, 0, tokens)

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        return [token for token in range(self.vocab) if self._lib.llama_vocab_is_eog(self._vocab, token)]

    def greedy(self, ids: Sequence[int], tokens: int, stop: Sequence[str] = ()) -> list[int]:
        """The ids that greedy decoding adds, up to the end of the text or to one of the strings of `stop`."""
        strings = [one.encode() for one in stop if one]
        tail, reach = b"", max(map(len, strings), default=0)
        self._forget()
        self._decode([(token, at, 0, at == len(ids) - 1) for at, token in enumerate(ids)])
        found: list[int] = []
        for at in range(len(ids), len(ids) + tokens):
            token = int(self._row(-1, 4 * self.vocab).argmax())
            found.append(token)
            piece = self._piece(token) if strings else b""
            tail = tail[-reach:] + piece
            if (
                self._lib.llama_vocab_is_eog(self._vocab, token)
                or len(found) == tokens
                or any(one in tail for one in strings)
            ):
                break
            self._decode([(token, at, 0, True)])
        return found

    def times(self, prompt: Sequence[int], decode_tokens: int, sequences: int) -> tuple[float, float]:
        """Seconds to read a prompt in each sequence, and to write `decode_tokens` behind it."""
        self._forget()
        began = time.perf_counter()
        last = len(prompt) - 1
        entries = [(t, at, one, at == last) for one in range(sequences) for at, t in enumerate(prompt)]
        self._decode(entries)
        rows = [place for place, entry in enumerate(entries) if entry[3]]
        tokens = [int(self._row(place, 4 * self.vocab).argmax()) for place in rows]
        read = time.perf_counter()
        for step in range(decode_tokens):
            at = len(prompt) + step
            self._decode([(token, at, one, True) for one, token in enumerate(tokens)])
            tokens = [int(self._row(place, 4 * self.vocab).argmax()) for place in range(sequences)]
        return read - began, time.perf_counter() - read

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that the file asks for in front."""
        raw = text.encode()
        room = len(raw) + 8
        out = self._ffi.new("llama_token[]", room)
        count = self._lib.llama_tokenize(self._vocab, raw, len(raw), out, room, True, True)
        return [int(out[place]) for place in range(count)]

    def _piece(self, token: int) -> bytes:
        room = 64
        while True:
            out = self._ffi.new("char[]", room)
            length = self._lib.llama_token_to_piece(self._vocab, token, out, room, 0, True)
            if length >= 0:
                return bytes(self._ffi.buffer(out, length))
            room = -length

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _row(self, place: int, size: int) -> np.ndarray[Any, Any]:
        row = self._lib.llama_get_logits_ith(self._context, place)
        return np.frombuffer(self._ffi.buffer(row, size), dtype=np.float32)

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        if len(entries) > self._room:
            raise SystemExit(f"{len(entries)} tokens are more than the context of {self._room} holds")
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
        if self._lib.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama.cpp could not compute the tokens")


def _log_probability(logits: np.ndarray[Any, Any], token: int) -> float:
    """Log-softmax at one token, in nats; no row is copied to double precision."""
    highest = logits.max()
    return float(logits[token] - highest) - math.log(np.exp(logits - highest).sum(dtype=np.float64))


def quantize(
    source: str, target: str, kind: int, threads: int, matrix: str | None, embedding: int | None
) -> None:
    """Write `target` as `source` in a llama_ftype, by the importance of input channels where it is given.

    `embedding`: the ggml type of the embedding and of the output matrix, else llama.cpp chooses.
    """
    ffi, lib = get_ffi(), get_lib()
    how = lib.llama_model_quantize_default_params()
    how.ftype, how.nthread = kind, threads
    if embedding is not None:
        how.token_embedding_type = how.output_tensor_type = embedding
    if matrix is not None:
        tensors = load_file(matrix)
        names = [ffi.new("char[]", name.encode()) for name in tensors]
        values = [np.ascontiguousarray(tensors[name], dtype=np.float32) for name in tensors]
        entries = ffi.new("struct llama_model_imatrix_data[]", len(names) + 1)
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            entries[place].name = name
            entries[place].data = ffi.cast("float *", value.ctypes.data)
            entries[place].size = value.size
        how.imatrix = entries
    if lib.llama_model_quantize(source.encode(), target.encode(), ffi.addressof(how)) != 0:
        raise SystemExit("llama.cpp cannot quantise the file")


def limit(memory_bytes: int, file_bytes: int) -> None:
    """Bound this process: address space, size of a file that it writes, and no core dump."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer each line; the first one that is not `quantize` loads a model."""
    ffi, lib = get_ffi(), get_lib()
    said: list[str] = []

    @ffi.callback("ggml_log_callback")
    def note(level: int, text: Any, data: Any) -> None:
        if level >= lib.GGML_LOG_LEVEL_WARN:
            said.append(ffi.string(text).decode(errors="replace").strip())

    lib.llama_log_set(note, ffi.NULL)
    lib.llama_backend_init()
    model: Model | None = None

    def reply(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found).encode() + b"\n")

    for line in asked:
        request = json.loads(line)
        verb = request.pop("verb")
        said.clear()
        try:
            if verb == "limit":
                limit(**request)
                reply({})
            elif verb == "quantize":
                quantize(**request)
                reply({})
            elif verb == "load":
                began = time.perf_counter()
                model = Model(**request)
                seconds = time.perf_counter() - began
                about = {"vocab": model.vocab, "longest": model.longest, "ends": model.ends}
                reply({**about, "seconds": seconds})
            elif model is None:
                raise SystemExit("no model is loaded")
            elif verb == "logits":
                rows = model.logits(**request)
                reply({"bytes": rows.nbytes})
                answers.write(rows)
            elif verb == "score":
                reply({"scores": model.score(**request)})
            elif verb == "greedy":
                reply({"ids": model.greedy(**request)})
            elif verb == "tokenize":
                reply({"ids": model.tokenize(**request)})
            elif verb == "times":
                prefill, decode = model.times(**request)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                reply({"prefill_seconds": prefill, "decode_seconds": decode, "peak_memory_bytes": peak})
            else:
                raise SystemExit(f"unknown verb {verb}")
        except SystemExit as fault:
            reply({"fault": "; ".join([str(fault), *said[-2:]])})
        answers.flush()


if __name__ == "__main__":
    # What llama.cpp itself prints goes to the log, not between the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, out)
