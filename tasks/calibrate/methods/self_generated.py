"""Calibration text that the dense model writes itself (Ji et al., arXiv 2410.17711, section 4).

Each sample starts at BOS, or at a random ordinary token where the tokenizer has none, and is sampled from
the full distribution. An end-of-text token does not stop it: what follows is the next document, as in
training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resprout.configs.errors import StageFailed
from resprout.configs.schema import CalibrateConfig
from resprout.tasks.calibrate.samples import Samples
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.models.load import load_for, load_tokenizer

BATCH_ROWS = 32


def draw(job: Job[CalibrateConfig], inputs: Mapping[str, Path], progress: Progress) -> Samples:
    """Text that the dense model writes itself: `seq_len_tokens` a sample, drawn at `temperature`."""
    config = job.config
    tokenizer: Any = load_tokenizer(inputs["model"], job.trust_remote_code)
    model: Any = load_for(job, inputs["model"])
    generator = torch.Generator().manual_seed(job.seed)
    first = first_tokens(tokenizer, config.samples, generator)
    parts = list[Tensor]()
    length, total = config.seq_len_tokens, config.samples
    for start in range(0, total, BATCH_ROWS):
        batch = first[start : start + BATCH_ROWS]
        continued = _continued(progress, start * length, total * length)
        parts.append(generate(model, batch, length, config.temperature, generator, continued))
    notes = [{"reason": "written by the dense model", "first_token": int(token)} for token in first]
    return Samples(torch.cat(parts), notes)


def _continued(progress: Progress, before: int, whole: int) -> Progress:
    def continued(done: int, total: int, what: str) -> None:
        progress(before + done, whole, what)

    return continued


def first_tokens(tokenizer: Any, count: int, generator: torch.Generator) -> Tensor:
    """First tokens: BOS for all, or ordinary tokens drawn at random where there is no BOS; int64 [count]."""
    if tokenizer.bos_token_id is not None:
        return torch.full((count,), tokenizer.bos_token_id)
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    return ordinary[torch.randint(len(ordinary), (count,), generator=generator)]


@torch.inference_mode()
def generate(
    model: Any,
    first: Tensor,
    length: int,
    temperature: float,
    generator: torch.Generator,
    progress: Progress,
) -> Tensor:
    """Sequences of `length` tokens that begin with `first`: int64 [rows, length] on the CPU.

    Draws come from `generator` on the CPU in float32, so that they do not depend on global state.
    """
    device = next(model.parameters()).device
    ids, cache = [first], None
    for step in range(1, length):
        out = model(input_ids=ids[-1][:, None].to(device), cache=cache, use_cache=True)
        cache = out.cache
        weights = torch.softmax(out.logits[:, -1].float().cpu() / temperature, dim=-1)
        if not torch.isfinite(weights).all():
            raise StageFailed(
                f"the dense model's logits are not finite at token {step} of a generated sample; try "
                "model.dtype: float32, or calibrate.method: random"
            )
        ids.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
        if step % 16 == 0 or step == length - 1:
            progress((step + 1) * len(first), length * len(first), "tokens")
    return torch.stack(ids, dim=1)
