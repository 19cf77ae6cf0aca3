"""Seconds of every criterion beside plain passes over the same calibration tokens; exits 1 above a bound.

    PYTHONPATH=tests/support python tests/benchmarks/bench_criteria.py [--tokens 8192] [--only flap ...]

Medians over pairs, a plain pass and the criterion one right after the other, on a random Llama of 12 layers
in bfloat16 and samples of 2,048 tokens, units ffn and kv_groups:
  needs weights or inputs   in decoder forward passes without logits; at most 1.15, of `obs` at most 5
  needs gradients, or       in forward and backward passes of the loss, with all gradients; at most 1.15, and
  runs its own backwards    at most 5 forward passes more where it looks at as much open-domain text besides

Inverting a Hessian costs the same for few tokens as for many: `obs` is timed over 128 samples of 2,048
tokens, in one pair.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks_model import RANDOM_LLAMA
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.models.forward import BATCH_TOKENS
from resprout.tasks.models.shape import count
from resprout.tasks.prune.interfaces import GeneralCriterion
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.scoring import score_units
from tiny_models import tiny_model

BOUND = 1.15
SECOND_ORDER = {"obs": 5.0}
BACKWARD = {"lora_gradient", "relevance"}
"""They need the model, and go through it backwards in their own way."""
GENERAL = 5.0
"""Forward passes over the open-domain text, whose Hessian is taken as by a second-order criterion."""
UNITS = ("ffn", "kv_groups")
STATED = (128, 2048)
"""Samples and tokens of each over which a second-order criterion keeps to its bound."""


def seconds_of(job: Callable[[], Any]) -> float:
    """Seconds that a job takes."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def compared(name: str, model: Any, ids: Tensor, repeats: int) -> bool:
    """Print what a criterion takes beside its plain pass; True where that is above its bound."""
    criterion, needs = CRITERIA.get(name)(), CRITERIA.entry(name).declared["needs"]
    batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
    backwards = needs == "gradients" or name in BACKWARD
    trained = copy.deepcopy(model).requires_grad_() if backwards else model

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model.model(input_ids=batch, use_cache=False)

    def backward() -> None:
        for batch in batches:
            trained(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            trained.zero_grad(set_to_none=True)

    plain = backward if backwards else forward
    general = ids if isinstance(criterion, GeneralCriterion) else None
    turns = []
    for _ in range(repeats + 1):
        base = seconds_of(plain)
        taken = seconds_of(lambda: score_units(model, criterion, UNITS, ids, general=general))
        turns.append((base, taken, seconds_of(forward) if general is not None else 0.0))
    # The first turn warms up.
    base, taken = (statistics.median(one) for one in list(zip(*turns[1:], strict=True))[:2])
    ratio = statistics.median(taken / base for base, taken, _ in turns[1:])
    bound = SECOND_ORDER.get(name, BOUND)
    bound += GENERAL * statistics.median(once / base for base, _, once in turns[1:])
    passes = "forward and backward passes" if backwards else "forward passes"
    print(
        f"{name:16} {taken:7.2f} s = {ratio:5.2f} {passes} of {base:.2f} s over {ids.numel():,} tokens; "
        f"bound {bound:.2f}"
    )
    return ratio > bound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    keep_freed_memory()
    model = tiny_model("llama", dtype="bfloat16", **RANDOM_LLAMA)
    size, threads = count(model).params / 1e6, torch.get_num_threads()
    print(f"random llama, {size:.1f}M parameters, bfloat16, {threads} threads")
    over = False
    for entry in CRITERIA:
        if set(UNITS) <= set(entry.declared["units"]) and entry.name in (args.only or [entry.name]):
            stated = entry.name in SECOND_ORDER
            shape = STATED if stated else (args.tokens // args.seq_len, args.seq_len)
            ids = torch.randint(4, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
            over |= compared(entry.name, model, ids, 1 if stated else args.repeats)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
