"""The divergence of the rows that a method asks for, each compared once and kept through an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_for, load_pair
from resprout.tasks.select.dense_words import KeptComparison, Words
from resprout.tasks.select.divergence import FILE, Comparison, prompt_states
from resprout.tasks.select.finite import PILOT, PRUNED
from resprout.tasks.select.kept_rows import ROWS, Columns, KeptRows, Table
from resprout.tasks.select.likelihood import following_difficulty


class Compared:
    """Divergences of the pruned from the dense model; the models are loaded when the first row is asked for.

    What shards or an interrupted call compared is taken over.
    """

    def __init__(
        self,
        job: Job[SelectConfig],
        inputs: Mapping[str, Path],
        ids: Sequence[str],
        encoded: Sequence[Encoded],
        progress: Progress,
        prompt_states: bool = False,
    ) -> None:
        self.job, self.inputs, self.ids, self.encoded, self.progress = job, inputs, ids, encoded, progress
        self.lengths = np.array([len(row) for row in encoded], dtype=np.int64)
        self._comparison: Comparison | KeptComparison | None = None
        kept = inputs["words"] if job.config.paser.dense == "kept" else None
        self._words = None if kept is None else Words(kept, encoded)
        self._states = prompt_states
        self._kept = KeptRows(job.checkpoints, progress)
        self._found = self._kept.table("compared", len(encoded))
        for folder in shards_in(inputs):
            shard = load_file(folder / FILE)
            self._found.put(shard.pop(ROWS), shard)

    @property
    def jsd(self) -> NDArray[np.float64]:
        """Of each row, not a number where it was not compared."""
        return self._found.column("jsd")

    @property
    def dense_nll(self) -> NDArray[np.float64]:
        """Mean negative log-likelihood of each answer under the dense model, likewise."""
        return self._found.column("dense_nll")

    def __call__(self, rows: Iterable[int], what: str = "rows") -> None:
        """Compare those of the rows that were not yet, `what` they are to who looks on."""
        missing = self._found.missing(rows)
        if len(missing):
            self._ask(self._found, missing, self._models(), f"{what} compared")

    def states(self, encoded: Sequence[Encoded]) -> NDArray[np.float32]:
        """The dense model's mean hidden states over the prompts of all rows, free where all were compared."""
        if self._states and self._found.known.all():
            return self._found.column("prompt_states")
        return self.dense_states(encoded, self.ids, "pool")

    def dense_states(self, encoded: Sequence[Encoded], ids: Sequence[str], name: str) -> NDArray[np.float32]:
        """The dense model's mean hidden states over the prompts of any rows, kept under that name."""
        return prompt_states(self._dense(), encoded, ids, self._kept, name)

    def following_difficulty(self) -> NDArray[np.float64]:
        """IFD of each row by the dense model."""
        return following_difficulty(self._dense(), self.encoded, self.ids, self._kept)

    def by(self, folder: Path) -> Callable[[Sequence[int]], NDArray[np.float64]]:
        """A function that gives the divergence of the model in a folder on rows; of others not a number."""

        def divergence(rows: Sequence[int]) -> NDArray[np.float64]:
            found = self._kept.table("pilot", len(self.encoded))
            missing = found.missing(rows)
            if len(missing):
                self._ask(found, missing, self._against(folder, PILOT), "rows after the pilot")
            return found.column("jsd")

        return divergence

    @property
    def bound(self) -> float | None:
        """How far a token's divergence may be off, in the mean over all; None where it is exact."""
        if self._words is None:
            return None
        rows, targets = np.flatnonzero(self._found.known), np.diff(self._words.ends, prepend=0)
        return float(np.average(self._found.column("error")[rows], weights=targets[rows]))

    def _ask(
        self, found: Table, rows: NDArray[np.int64], comparison: Comparison | KeptComparison, what: str
    ) -> None:
        def of(places: list[int]) -> Columns:
            given, ids = zip(*((self.encoded[place], self.ids[place]) for place in places), strict=True)
            return comparison.of(given, places, ids).columns

        self._kept.ask(found, rows, comparison.batches(self.lengths[rows].tolist()), of, what)

    def _models(self) -> Comparison | KeptComparison:
        if self._comparison is None:
            self._comparison = self._against(self.inputs["pruned"], PRUNED, self._states)
        return self._comparison

    def _against(self, folder: Path, name: str, states: bool = False) -> Comparison | KeptComparison:
        """The model in a folder beside the dense one, or what was kept of it."""
        temperature = self.job.config.paser.temperature
        if self._words is not None:
            return KeptComparison(load_for(self.job, folder), self._words, temperature, name)
        if isinstance(self._comparison, Comparison):
            model = load_for(self.job, folder, beside=self._comparison.dense)
            return Comparison(model, self._comparison.dense, temperature, states, name)
        dense, model = load_pair(self.job, self.inputs["dense"], folder)
        return Comparison(model, dense, temperature, states, name)

    def _dense(self) -> Any:
        """The dense model, which a setting that asks for it does not leave to kept words."""
        comparison = self._models()
        if isinstance(comparison, KeptComparison):
            raise ValueError("the dense model is not loaded where its words are kept")
        return comparison.dense
