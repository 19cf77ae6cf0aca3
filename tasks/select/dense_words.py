"""The dense model's likeliest tokens on the answers of a pool, kept once for all models pruned from it.

By them and the rest's mass, as one event, the divergence of a pruned model is computed without the dense one.
Two things put it off, by amounts that are bounded (`joined_jsd`):

- Events are joined, which lowers it (data processing inequality): JSD = that of the joined events + the mean
  mass of the rest times the JSD inside it, which is at most ln 2.
- Log-probabilities are kept in 16 bits, so that of an event q turns into q' = q e^t. Its term of the
  divergence, (p ln(p / m) + q ln(q / m)) / 2 with m = (p + q) / 2, has the derivative q ln(q / m) / 2 by
  ln q. Its size is at most m ln 2, as x |ln x| is at most 2 ln 2 for x = q / m in [0, 2]. From q' to q, m is
  at most m' e^|t|, so that the term moves by at most |t| e^|t| m' ln 2.
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

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.infra.store.stored_json import parse_json
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
from resprout.tasks.select.finite import DENSE, PRUNED, require_finite
from resprout.tasks.select.json_files import write_json
from resprout.tasks.select.pool import read_pool

ABOUT, INDEX = "dense_words.json", "index.safetensors"
SHARD_TARGETS = 2**14
CHECKPOINT_MINUTES = 10
HALF, HALF_TINY = 2.0**-11, 2.0**-25
"""A number in 16 bits is off by at most 2^-11 of the exact one, or by 2^-25 where it is below 2^-14."""
LEAST_HALF = -65504.0
FLOAT32 = 1e-5
"""What sums in float32 are off at the most: they lose some 1e-6."""


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

    def __init__(self, model: Any, words: Words, temperature: float, name: str = PRUNED) -> None:
        """Keep both; `name` is the model's in errors.

        Raises:
            BadInput: the model has another vocabulary.
        """
        self.model, self.words, self.temperature, self.name = model, words, temperature, name
        self.device = next(model.parameters()).device.type
        own = model.get_output_embeddings().weight.shape[0]
        if own != words.vocabulary:
            raise BadInput(
                f"the pruned model has {own} tokens and the dense one {words.vocabulary}; select compares "
                "their distributions and needs one vocabulary"
            )

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of these lengths by the batches in which the model sees them."""
        return batches_of(lengths, self.device)

    @torch.inference_mode()
    def of(self, rows: Sequence[Encoded], places: Sequence[int], ids: Sequence[str]) -> RowDivergences:
        """Divergences on each row's targets, of rows at these places of the pool, and how far they are off.

        Raises:
            StageFailed: logits that are not finite.
        """
        batch = collate(rows).to(self.device)
        states = hidden_states(self.model, batch)[batch.positions]
        kept = [self.words.of(place) for place in places]
        logs = torch.cat([torch.cat([one.logs, one.rest[:, None]], -1) for one in kept]).to(self.device)
        tokens = torch.cat([one.ids for one in kept]).to(self.device, torch.int64)
        sums = torch.zeros(3, len(rows), dtype=torch.float64)
        chunk = max(1, HEAD_ELEMENTS // self.words.vocabulary)
        for start in range(0, len(batch.targets), chunk):
            part = slice(start, start + chunk)
            own = events(head(self.model, states[part]) / self.temperature, tokens[part]).exp()
            jsd, error = joined_jsd(own, logs[part])
            each = torch.stack([jsd, error, torch.ones_like(jsd)]).double().cpu()
            sums.index_add_(1, batch.row[part].cpu(), each)
        jsds, errors = (sums[:2] / sums[2]).numpy()
        require_finite(jsds, self.name, places, ids)
        return RowDivergences(jsds, self.words.dense_nll[list(places)], error=errors)


def joined_jsd(own: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence of joined events, and how far it is from that of all events at the most: [tokens] each.

    Args:
        own: The model's probabilities [tokens, events]; the last event is the rest.
        logs: Log-probabilities of the other, in 16 bits.
    """
    kept = logs.float().clamp_min(LEAST_HALF)
    # 16 bits do not sum to 1.
    total = kept.logsumexp(-1, keepdim=True)
    dense = (kept - total).exp()
    moved = kept.abs() * (HALF / (1 - HALF)) + HALF_TINY + total.abs()
    joined = torch.zeros_like(moved)
    joined[:, -1] = 1
    error = ((own + dense) / 2 * moved.exp() * (moved + joined)).sum(-1) * math.log(2)
    return jsd_of_probabilities(own, dense), (error + FLOAT32).clamp(max=math.log(2))


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
        done = begin
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
                require_finite(nll[rows], DENSE, rows, [pool.ids[row] for row in rows])
                done += len(rows)
                progress(done, len(encoded), "rows")
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
    state = parse_json((before / "state.json").read_bytes(), "state.json")
    for shard in range(len(state["firsts"])):
        shutil.copyfile(shard_file(before, shard), shard_file(workdir, shard))
    nll[: state["begin"]] = state["nll"]
    return state["firsts"], state["begin"], state["rest"]
