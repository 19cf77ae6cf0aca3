"""Answers of ONNX Runtime to a few prompts: `python -I onnx_probe.py REQUEST OUT`, as probe.py for torch.

It is run by its path and imports nothing of resprout, and neither torch nor transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from safetensors.numpy import save_file
from tokenizers import Tokenizer

CACHE = "cache"


class Session:
    """The graph with the cache of one sequence."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._caches = [name for name in self._inputs if CACHE in name]
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._kept = {name: self._empty(name) for name in self._caches}

    def _empty(self, name: str) -> np.ndarray[Any, Any]:
        """A cache of no tokens: [1, heads, 0, channels]."""
        one = self._inputs[name]
        half = np.float16 if "float16" in one.type else np.float32
        return np.zeros((1, int(one.shape[1]), 0, int(one.shape[3])), dtype=half)

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits of tokens behind those that were read before: float32 [tokens, vocabulary]."""
        before = self._kept[self._caches[0]].shape[2] if self._caches else 0
        known = {
            "input_ids": np.array([ids], dtype=np.int64),
            "position_ids": np.arange(before, before + len(ids), dtype=np.int64)[None],
            "attention_mask": np.ones((1, before + len(ids)), dtype=np.int64),
        }
        given = {name: known[name] for name in self._inputs if name in known} | self._kept
        found = dict(zip(self._outputs, self._session.run(None, given), strict=True))
        for name in self._caches:
            self._kept[name] = found[name.replace("input.", "output.", 1)]
        return found["logits"][0].astype(np.float32)


def main(request: Path, out: Path) -> None:
    """Load the requested folder and write the answers to `out`."""
    given = json.loads(request.read_text())
    folder, question = Path(given["folder"]), given["question"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = json.loads((folder / "config.json").read_text()).get("eos_token_id")
    ends = set(ends) if isinstance(ends, list) else {ends}
    logits, input_ids, greedy_ids = {}, [], []
    for place, prompt in enumerate(question["prompts"]):
        session = Session(folder / "model.onnx", question["threads"])
        ids = tokenizer.encode(prompt).ids
        rows = session.read(ids)
        logits[str(place)], added = rows, [int(rows[-1].argmax())]
        while len(added) < question["greedy_tokens"] and added[-1] not in ends:
            added.append(int(session.read(added[-1:])[-1].argmax()))
        input_ids.append(ids)
        greedy_ids.append(added)
    save_file(logits, out / "logits.safetensors")
    (out / "answer.json").write_text(json.dumps({"input_ids": input_ids, "greedy_ids": greedy_ids}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
