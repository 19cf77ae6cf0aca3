"""A teacher on disk: its likeliest tokens at each target of a training."""

from __future__ import annotations

import bisect
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.core.job import Checkpoints, Job, Progress
from resprout.tasks.core.termination import deferred_termination
from resprout.tasks.data.response import head
from resprout.tasks.data.top_tokens import Top, empty, opened, read, shard_file, write
from resprout.tasks.models.load import load_model
from resprout.tasks.recover import checkpoint
from resprout.tasks.recover.batches import Batch, collate, layouts, target_states
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.teachers import Piece
from resprout.tasks.recover.training_data import TrainingData, prepare

ABOUT, INDEX = "teacher.json", "index.safetensors"
SHARD_TARGETS = 2**16
"""Targets of a file, about."""
PASS_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Places of a forward pass."""


def losses(log_probabilities: Tensor, top: Top) -> Tensor:
    """Sums over targets of the rest's mass, the entropy in nats, and what of it is lost: float64 [3]."""
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    kept = torch.cat([top.logs, top.rest[:, None]], -1)
    known = -(kept.exp() * kept).sum(-1)
    return torch.stack([top.rest.exp().sum(), entropy.sum(), (entropy - known).sum()]).double().cpu()


class Index(NamedTuple):
    """The examples whose targets are kept, and how many targets end with each: int64 [examples]."""

    examples: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, data: TrainingData) -> Index:
        """All that is trained on or held out."""
        used = np.unique(np.fromiter(itertools.chain(*data.steps, data.held_out), dtype=np.int64))
        return cls(used, np.cumsum([data.targets(int(one)) for one in used], dtype=np.int64))

    def span(self, place: int, before: int = 0) -> tuple[int, int]:
        """Where the targets of the example at a place begin and end, counted from `before` on."""
        return (int(self.ends[place - 1]) if place else 0) - before, int(self.ends[place]) - before


class Disk:
    """A teacher whose words were kept: those of a batch's targets are read when they are asked for."""

    def __init__(self, folder: Path, examples: Examples) -> None:
        """Open the files.

        Raises:
            BadInput: they are about other tokens, as those of another model or data are.
        """
        from safetensors.numpy import load_file

        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["digest"] != examples.digest():
            raise BadInput(
                "the teacher's file is about other tokens than those that recovery trains on: it was made "
                "with another tokenizer, other data or other settings; let the run make it"
            )
        self.index = Index(**load_file(folder / INDEX))
        self.shards: list[int] = about["shards"]
        self.files: list[Any] = [opened(folder, shard) for shard in range(len(self.shards))]

    def teach(self, batch: Batch) -> Callable[[slice], Piece]:
        """The kept tokens' log-probabilities and the rest's, which sum to 1 in spite of 16 bits."""
        tops = [self._read(one) for one in batch.examples]
        device = batch.targets.device
        logs = torch.cat([torch.cat([one.logs, one.rest[:, None]], -1) for one in tops]).to(device).float()
        logs = logs.log_softmax(-1)
        ids = torch.cat([one.ids for one in tops]).to(device, torch.int64)
        return lambda part: (logs[part], ids[part])

    def _read(self, example: int) -> Top:
        """The targets of an example, all of which lie in one shard."""
        place = int(self.index.examples.searchsorted(example))
        if place == len(self.index.examples) or self.index.examples[place] != example:
            raise BadInput(f"the teacher's file lacks example {example + 1}; let the run make it again")
        shard = bisect.bisect_right(self.shards, self.index.span(place)[0])
        part = slice(*self.index.span(place, self.shards[shard - 1] if shard else 0))
        return read(self.files[shard], part)


def make(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Ask the dense model about all that is trained on, and keep its words shard by shard."""
    from safetensors.numpy import save_file

    config = job.config
    data = prepare(config, {**inputs, "pruned": inputs["dense"]}, job.seed, job.trust_remote_code)
    model: Any = load_model(inputs["dense"], job.dtype, job.device, job.trust_remote_code)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    k, index = min(config.distill.top_k, vocabulary - 1), Index.of(data)
    shards, sums = list[int](), torch.zeros(3, dtype=torch.float64)
    with checkpoint.opened(job.checkpoints) as before:
        if before is not None:
            shards, sums = _taken_over(before, workdir)
    saved = time.monotonic()
    with deferred_termination() as ending:
        while not shards or shards[-1] < int(index.ends[-1]):
            kept_targets = shards[-1] if shards else 0
            begin = int(index.ends.searchsorted(kept_targets, side="right"))
            # All targets of an example lie in one file.
            end = max(begin + 1, int(index.ends.searchsorted(kept_targets + SHARD_TARGETS, side="right")))
            found, seen = empty(index.span(end - 1, kept_targets)[1], k), begin
            places, added = PASS_TOKENS.get(job.device, PASS_TOKENS["cuda"]), torch.zeros_like(sums)
            for layout in layouts(data.rows.lengths, index.examples[begin:end].tolist(), places, None):
                if ending.asked:
                    break
                batch = collate(data.rows, layout, data.everything, pack=False).to(job.device)
                with torch.no_grad():
                    logits = head(model, target_states(model, batch)) / config.distill_temperature
                    logs = logits.log_softmax(-1)
                top = Top.of(logs, k)
                added += losses(logs, top)
                at = index.examples.searchsorted(batch.examples)
                found.put(top, [slice(*index.span(int(place), kept_targets)) for place in at])
                seen += len(batch.examples)
                progress(seen, len(index.examples), "examples")
            if seen == end:
                write(workdir, len(shards), found, vocabulary)
                shards.append(index.span(end - 1)[1])
                sums += added
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes
            if (due or ending.asked) and shards and shards[-1] < int(index.ends[-1]):
                _keep(job.checkpoints, workdir, shards, sums)
                saved = time.monotonic()
            if ending.asked:
                break
    save_file(index._asdict(), workdir / INDEX)
    about = {"digest": data.rows.digest(), "shards": shards}
    (workdir / ABOUT).write_text(json.dumps(about, sort_keys=True), encoding="utf-8")
    rest, entropy, lost = (sums / int(index.ends[-1])).tolist()
    metrics = {
        "teacher_tokens": int(index.ends[-1]), "teacher_top_k": k, "teacher_rest_mass": rest,
        "teacher_entropy_nats": entropy, "teacher_entropy_lost_nats": lost,
    }  # fmt: skip
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def _keep(checkpoints: Checkpoints | None, workdir: Path, shards: list[int], sums: Tensor) -> None:
    """A checkpoint of the files so far."""
    if checkpoints is None:
        return
    state = workdir / checkpoint.VALUES
    state.write_text(json.dumps({"shards": shards, "sums": sums.tolist()}), encoding="utf-8")
    checkpoints.save(workdir, len(shards))
    state.unlink()


def _taken_over(before: Path, workdir: Path) -> tuple[list[int], Tensor]:
    """The files of a checkpoint, copied; where each ends, and the sums."""
    values = parse_json((before / checkpoint.VALUES).read_bytes(), checkpoint.VALUES)
    for shard in range(len(values["shards"])):
        shutil.copyfile(shard_file(before, shard), shard_file(workdir, shard))
    return values["shards"], torch.tensor(values["sums"], dtype=torch.float64)
