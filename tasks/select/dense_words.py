"""The dense model's likeliest tokens on the answers of a pool, kept once for all models pruned from it.

By them and the rest's mass, as one event, the divergence of a pruned model is computed without the dense one.
Putting events together lowers it (data processing inequality), by no more than the mean of the rest's masses
times ln 2: JSD = that of the joined events + the mean mass of the rest times the JSD inside it.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.termination import deferred_termination
from resprout.tasks.data.response import collate, head, hidden_states
from resprout.tasks.data.template import Encoded
from resprout.tasks.data.top_tokens import Top, empty, events, opened, read, shard_file, write
from resprout.tasks.models.load import load_for
from resprout.tasks.select.divergence import (
    HEAD_ELEMENTS,
    RowDivergences,
    batches_of,
    jsd_of_probabilities,
    on_prompts,
)
from resprout.tasks.select.json_files import write_json
from resprout.tasks.select.pool import read_pool

ABOUT, INDEX = "dense_words.json", "index.safetensors"
SHARD_TARGETS = 2**16
CHECKPOINT_MINUTES = 10


class Words:
    """What was kept of the rows of a pool, in its order: their targets, and how likely their answers are."""

    def __init__(self, folder: Path, encoded: Sequence[Encoded]) -> None:
        """Open the files.

        Raises:
            BadInput: they are about other rows.
        """
        from safetensors.numpy import load_file

        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        index = load_file(folder / INDEX)
        self.ends, self.dense_nll = index["ends"], index["dense_nll"]
        if not np.array_equal(self.ends, ends_of(encoded)):
            raise BadInput(
                "the dense model's kept words are about other rows than the pool's: they were made with "
                "another tokenizer or other rows; let the run make them"
            )
        self.vocabulary: int = about["vocabulary"]
        self.firsts: list[int] = about["firsts"]
        self._shards = [opened(folder, shard) for shard in range(len(self.firsts))]

    def of(self, row: int) -> Top:
        """The targets of a row, all of which lie in one shard."""
        begin, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        shard = int(np.searchsorted(self.firsts, begin, side="right")) - 1
        first = self.firsts[shard]
        return read(self._shards[shard], slice(begin - first, end - first))


class KeptComparison:
    """A model held against what was kept of the dense one."""

    def __init__(self, model: Any, words: Words, temperature: float) -> None:
        """Keep both.

        Raises:
            BadInput: the model has another vocabulary.
        """
        self.model, self.words, self.temperature = model, words, temperature
        self.device = next(model.parameters()).device.type
        own = model.get_output_embeddings().weight.shape[0]
        if own != words.vocabulary:
            raise BadInput(
                f"the pruned model has {own} tokens and the dense one {words.vocabulary}; select compares "
                "their distributions and needs one vocabulary"
            )
        self.bound, self.tokens = 0.0, 0
        """Sum over tokens of how much the divergence may be too low, and their number."""

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of these lengths by the batches in which the model sees them."""
        return batches_of(lengths, self.device)

    @torch.inference_mode()
    def of(self, rows: Sequence[Encoded], places: Sequence[int], ids: Sequence[str] = ()) -> RowDivergences:
        """Divergences on each row's targets, of rows at these places of the pool; at most the whole one's."""
        batch = collate(rows).to(self.device)
        states = hidden_states(self.model, batch)[batch.positions]
        kept = [self.words.of(place) for place in places]
        logs = torch.cat([torch.cat([one.logs, one.rest[:, None]], -1) for one in kept]).float()
        # 16 bits do not sum to 1.
        dense = logs.log_softmax(-1).exp().to(self.device)
        tokens = torch.cat([one.ids for one in kept]).to(self.device, torch.int64)
        sums = torch.zeros(2, len(rows), dtype=torch.float64)
        chunk = max(1, HEAD_ELEMENTS // self.words.vocabulary)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            own = events(head(self.model, states[part]) / self.temperature, tokens[part]).exp()
            jsd = jsd_of_probabilities(own, dense[part])
            self.bound += float(((own[:, -1] + dense[part, -1]) / 2).double().sum()) * math.log(2)
            each = torch.stack([jsd, torch.ones_like(jsd)]).double().cpu()
            sums.index_add_(1, batch.row[part].cpu(), each)
        self.tokens += len(batch.targets)
        found = (sums[0] / sums[1]).numpy()
        if not (fine := np.isfinite(found)).all():
            first = int(np.flatnonzero(~fine)[0])
            named = f" (the first is {ids[first]})" if ids else ""
            raise StageFailed(
                f"the pruned model's logits are not finite on some rows{named}; try model.dtype: float32, or "
                "a milder prune.target"
            )
        return RowDivergences(found, self.words.dense_nll[list(places)])


def targets_of(row: Encoded) -> int:
    """Tokens of a row that are predicted: without a prompt the first one is not."""
    return len(row.response_ids) - (not row.prompt_ids)


def ends_of(encoded: Sequence[Encoded]) -> NDArray[np.int64]:
    """How many targets end with each row."""
    return np.cumsum([targets_of(row) for row in encoded], dtype=np.int64)


@torch.inference_mode()
def make(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Ask the dense model about the answers of the whole pool, and keep its words shard by shard."""
    from safetensors.numpy import save_file

    config, pool = job.config.paser, read_pool(job, inputs)
    encoded = on_prompts(pool.encoded) if config.mode == "released" else pool.encoded
    ends, lengths = ends_of(encoded), [len(row) for row in encoded]
    model: Any = load_for(job, inputs["dense"])
    vocabulary = model.get_output_embeddings().weight.shape[0]
    k, nll = min(config.top_k, vocabulary - 1), np.zeros(len(encoded))
    firsts, begin, rest = list[int](), 0, 0.0
    with nullcontext() if job.checkpoints is None else job.checkpoints.latest() as before:
        if before is not None:
            firsts, begin, rest = _taken_over(before, workdir, nll)
    saved = time.monotonic()
    with deferred_termination() as ending:
        while begin < len(encoded):
            first = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(ends.searchsorted(first + SHARD_TARGETS, side="right")))
            found, lost = empty(int(ends[end - 1]) - first, k), 0.0
            for places in batches_of(lengths[begin:end], job.device):
                if ending.asked:
                    break
                rows = [begin + place for place in places]
                given = [encoded[row] for row in rows]
                lost += _keep_words(model, given, rows, ends, first, found, nll, config.temperature)
                progress(begin, len(encoded), "rows")
            if ending.asked:
                _keep(job, workdir, firsts, begin, rest, nll)
                break
            write(workdir, len(firsts), found, vocabulary)
            firsts.append(first)
            begin, rest = end, rest + lost
            if time.monotonic() - saved > 60 * CHECKPOINT_MINUTES:
                _keep(job, workdir, firsts, begin, rest, nll)
                saved = time.monotonic()
    save_file({"ends": ends, "dense_nll": nll}, workdir / INDEX)
    write_json(workdir / ABOUT, {"vocabulary": vocabulary, "firsts": firsts})
    targets = int(ends[-1])
    kept = {"tokens": targets, "top_k": k, "rest_mass": rest / targets}
    write_json(workdir / "metrics.json", {f"dense_words_{name}": value for name, value in kept.items()})


def _keep_words(
    model: Any,
    rows: Sequence[Encoded],
    places: Sequence[int],
    ends: NDArray[np.int64],
    first: int,
    found: Top,
    nll: NDArray[np.float64],
    temperature: float,
) -> float:
    """Put the words of a batch into its shard; the sum of what of the mass they leave out."""
    batch = collate(rows).to(next(model.parameters()).device.type)
    states, parts = hidden_states(model, batch)[batch.positions], list[Top]()
    chunk = max(1, HEAD_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    losses = list[Tensor]()
    for start in range(0, len(batch.targets), chunk):
        part = slice(start, start + chunk)
        logits = head(model, states[part])
        losses.append(torch.logsumexp(logits, -1) - logits.gather(1, batch.targets[part, None])[:, 0])
        parts.append(Top.of((logits / temperature).log_softmax(-1), found.logs.shape[1]))
    top = Top(*(torch.cat([getattr(one, name) for one in parts]).cpu() for name in Top._fields))
    sizes = [targets_of(row) for row in rows]
    found.put(
        top,
        [
            slice(int(ends[place]) - size - first, int(ends[place]) - first)
            for place, size in zip(places, sizes, strict=True)
        ],
    )
    for place, each in zip(places, torch.cat(losses).double().cpu().split(sizes), strict=True):
        nll[place] = float(each.mean())
    return float(top.rest.exp().double().sum())


def _keep(
    job: Job[SelectConfig],
    workdir: Path,
    firsts: list[int],
    begin: int,
    rest: float,
    nll: NDArray[np.float64],
) -> None:
    if job.checkpoints is None or not firsts:
        return
    with tempfile.TemporaryDirectory(prefix="resprout-words-") as name:
        folder = Path(name)
        for shard in range(len(firsts)):
            shutil.copyfile(shard_file(workdir, shard), shard_file(folder, shard))
        state = {"firsts": firsts, "begin": begin, "rest": rest, "nll": nll[:begin].tolist()}
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        job.checkpoints.save(folder, begin)


def _taken_over(before: Path, workdir: Path, nll: NDArray[np.float64]) -> tuple[list[int], int, float]:
    state = json.loads((before / "state.json").read_text(encoding="utf-8"))
    for shard in range(len(state["firsts"])):
        shutil.copyfile(shard_file(before, shard), shard_file(workdir, shard))
    nll[: state["begin"]] = state["nll"]
    return state["firsts"], state["begin"], state["rest"]
