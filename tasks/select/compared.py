"""The divergence of the rows that a method asks for, each compared once and kept through an interruption."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress, shards_in
from resprout.tasks.core.termination import deferred_termination
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.load import load_for, load_pair
from resprout.tasks.models.shape import read_config, shape_of
from resprout.tasks.select.dense_words import KeptComparison, Words
from resprout.tasks.select.divergence import (
    FILE,
    Comparison,
    RowDivergences,
    prompt_states,
    read_rows,
    write_rows,
)
from resprout.tasks.select.likelihood import following_difficulty

CHECKPOINT_MINUTES = 10


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
        hidden = shape_of(read_config(inputs["dense"])).hidden if prompt_states else 0
        self.found = RowDivergences.empty(len(encoded), hidden)
        if shards := shards_in(inputs):
            self._take([folder / FILE for folder in shards])
        with nullcontext() if job.checkpoints is None else job.checkpoints.latest() as before:
            if before is not None:
                self._take([before / FILE])

    @property
    def jsd(self) -> NDArray[np.float64]:
        """Of each row, not a number where it was not compared."""
        return self.found.jsd

    @property
    def dense_nll(self) -> NDArray[np.float64]:
        """Mean negative log-likelihood of each answer under the dense model, likewise."""
        return self.found.dense_nll

    def __call__(self, rows: Iterable[int]) -> None:
        """Compare those of the rows that were not yet."""
        known = self.found.known
        missing = np.array([row for row in rows if not known[row]], dtype=np.int64)
        if not len(missing):
            return
        comparison = self._models()
        saved, done = time.monotonic(), 0
        with deferred_termination() as ending:
            for places in comparison.batches(self.lengths[missing].tolist()):
                batch = missing[places].tolist()
                rows_of, names = zip(*((self.encoded[row], self.ids[row]) for row in batch), strict=True)
                found = comparison.of(rows_of, batch, names)
                self.found.put(batch, found)
                done += len(batch)
                if not ending.asked:
                    self.progress(done, len(missing), "rows compared")
                if ending.asked or time.monotonic() - saved > 60 * CHECKPOINT_MINUTES:
                    self._keep()
                    saved = time.monotonic()
                if ending.asked:
                    break

    def states(self, encoded: Sequence[Encoded]) -> NDArray[np.float32]:
        """The dense model's mean hidden states over the prompts of all rows, free where all were compared."""
        if self.found.prompt_states is not None and self.found.known.all():
            return self.found.prompt_states
        return self.dense_states(encoded)

    def dense_states(self, encoded: Sequence[Encoded]) -> NDArray[np.float32]:
        """The dense model's mean hidden states over the prompts of any rows."""
        return prompt_states(self._dense(), encoded, self.progress)

    def following_difficulty(self) -> NDArray[np.float64]:
        """IFD of each row by the dense model."""
        return following_difficulty(self._dense(), self.encoded, self.progress)

    def by(self, folder: Path) -> Callable[[Sequence[int]], NDArray[np.float64]]:
        """A function that gives the divergence of the model in a folder on rows; of others not a number."""

        def divergence(rows: Sequence[int]) -> NDArray[np.float64]:
            comparison = self._against(folder)
            found, given = RowDivergences.empty(len(self.encoded)), np.array(rows, dtype=np.int64)
            for done, places in enumerate(batches := comparison.batches(self.lengths[given].tolist()), 1):
                batch = given[places].tolist()
                found.put(batch, comparison.of([self.encoded[row] for row in batch], batch))
                self.progress(done, len(batches), "batches after the pilot")
            return found.jsd

        return divergence

    @property
    def bound(self) -> float | None:
        """How much too low a token's divergence may be, in the mean over all; None where it is exact."""
        if not isinstance(self._comparison, KeptComparison) or not self._comparison.tokens:
            return None
        return self._comparison.bound / self._comparison.tokens

    def _models(self) -> Comparison | KeptComparison:
        if self._comparison is None:
            self._comparison = self._against(self.inputs["pruned"])
        return self._comparison

    def _against(self, folder: Path) -> Comparison | KeptComparison:
        """The model in a folder beside the dense one, or what was kept of it."""
        temperature = self.job.config.paser.temperature
        if self._words is not None:
            return KeptComparison(load_for(self.job, folder), self._words, temperature)
        if isinstance(self._comparison, Comparison):
            model = load_for(self.job, folder, beside=self._comparison.dense)
            return Comparison(model, self._comparison.dense, temperature)
        dense, model = load_pair(self.job, self.inputs["dense"], folder)
        return Comparison(model, dense, temperature, self._states)

    def _dense(self) -> Any:
        """The dense model, which a setting that asks for it does not leave to kept words."""
        comparison = self._models()
        if isinstance(comparison, KeptComparison):
            raise ValueError("the dense model is not loaded where its words are kept")
        return comparison.dense

    def _take(self, paths: Sequence[Path]) -> None:
        other = read_rows(paths, len(self.encoded))
        rows = np.flatnonzero(other.known)
        states = None if other.prompt_states is None else other.prompt_states[rows]
        self.found.put(rows, RowDivergences(other.jsd[rows], other.dense_nll[rows], states))

    def _keep(self) -> None:
        if self.job.checkpoints is None:
            return
        with tempfile.TemporaryDirectory(prefix="resprout-compared-") as folder:
            rows = np.flatnonzero(self.found.known)
            write_rows(self.found, rows, Path(folder) / FILE)
            self.job.checkpoints.save(Path(folder), len(rows))
