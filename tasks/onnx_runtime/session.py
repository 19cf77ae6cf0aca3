"""A graph in ONNX Runtime with its cache; as a script, `python -I session.py REQUEST OUT`, its answers.

As a script it is run by its path and imports nothing of resprout, and neither torch nor transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike

CACHE = "cache"
LOGITS = "logits"


class Session:
    """The graph on the CPU, and what it has read so far: a cache of all rows, and which tokens count."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]
        self.vocab = int(next(one.shape[-1] for one in self._session.get_outputs() if one.name == LOGITS))
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing has been read."""
        self._kept: dict[str, Any] = {}
        self._seen = np.ones((1, 0), dtype=np.int64)

    def read(self, ids: ArrayLike, seen: ArrayLike | None = None) -> np.ndarray[Any, Any]:
        """Logits of further tokens [rows, tokens]: float32 [rows, tokens, vocabulary].

        `seen` is 0 where a token is padding, which others do not attend to; it may stand in front or behind.
        """
        tokens = np.asarray(ids, dtype=np.int64)
        counted = np.ones_like(tokens) if seen is None else np.asarray(seen, dtype=np.int64)
        if not self._kept:
            self._kept = {name: self._empty(name, len(tokens)) for name in self._inputs if CACHE in name}
            self._seen = np.ones((len(tokens), 0), dtype=np.int64)
        self._seen = np.concatenate([self._seen, counted], axis=1)
        places = (self._seen.cumsum(1) - 1).clip(0)[:, -tokens.shape[1] :]
        known = {"input_ids": tokens, "position_ids": places, "attention_mask": self._seen}
        given = {name: _value(known[name]) for name in self._inputs if name in known} | self._kept
        values = self._session.run_with_ort_values(self._outputs, given)
        found = dict(zip(self._outputs, values, strict=True))
        self._kept = {name: found[name.replace("input.", "output.", 1)] for name in self._kept}
        logits: np.ndarray[Any, Any] = found[LOGITS].numpy()
        return logits.astype(np.float32, copy=False)

    def spread(self, rows: int) -> None:
        """Go on from the one row that was read in so many."""
        self._seen = self._seen.repeat(rows, axis=0)
        self._kept = {name: _value(one.numpy().repeat(rows, axis=0)) for name, one in self._kept.items()}

    def _empty(self, name: str, rows: int) -> Any:
        """A cache of no tokens: [rows, heads, 0, channels]."""
        one = self._inputs[name]
        half = np.float16 if "float16" in one.type else np.float32
        return _value(np.zeros((rows, int(one.shape[1]), 0, int(one.shape[3])), dtype=half))


def _value(array: np.ndarray[Any, Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def greedy(session: Session, ids: Sequence[int], tokens: int, ends: set[int]) -> list[int]:
    """The ids that greedy decoding adds to a row, at most `tokens`, up to one of `ends`."""
    session.forget()
    rows = session.read([ids])[0]
    added = [int(rows[-1].argmax())]
    while len(added) < tokens and added[-1] not in ends:
        added.append(int(session.read([added[-1:]])[0, -1].argmax()))
    return added


def main(request: Path, out: Path) -> None:
    """Load the requested folder and write the answers to `out`, as tasks/export/probe.py does."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    given = json.loads(request.read_text())
    folder, question = Path(given["folder"]), given["question"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stated = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    ends = set(stated) if isinstance(stated, list) else {stated}
    session = Session(next(folder.glob("*.onnx")), question["threads"])
    logits, input_ids, greedy_ids = {}, [], []
    for place, prompt in enumerate(question["prompts"]):
        ids = tokenizer.encode(prompt).ids
        session.forget()
        logits[str(place)] = session.read([ids])[0]
        input_ids.append(ids)
        greedy_ids.append(greedy(session, ids, question["greedy_tokens"], ends))
    save_file(logits, out / "logits.safetensors")
    (out / "answer.json").write_text(json.dumps({"input_ids": input_ids, "greedy_ids": greedy_ids}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
