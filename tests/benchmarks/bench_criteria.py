"""Seconds of every criterion beside plain passes over the same calibration tokens; exits 1 above a bound.

    PYTHONPATH=tests python tests/benchmarks/bench_criteria.py [--tokens 8192] [--repeats 3] [--only flap ...]

Medians of runs that take turns in one process, on a random Llama of 12 layers in bfloat16, units ffn and
kv_groups:
  needs weights or inputs   in decoder forward passes without logits; at most 1.15, of `obs` at most 5
  needs gradients, or       in forward and backward passes of the loss, with all gradients; at most 1.15, and
  runs its own backwards    at most 5 forward passes more where it looks at as much open-domain text besides

Those that invert a Hessian, which costs the same for few tokens as for many, are timed apart, over twice the
tokens; 128 samples of 2,048 tokens would be 32 times.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from benchmarks_model import RANDOM_LLAMA
from torch import Tensor

from resprout.tasks.models.size import count
from resprout.tasks.models.walk import BATCH_TOKENS
from resprout.tasks.prune.contracts import GeneralCriterion
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.score import score_units
from tiny_models import tiny_model

BOUND = 1.15
SECOND_ORDER = {"obs": 5.0}
BACKWARD = {"lora_gradient", "relevance"}
"""They need the model, and go through it backwards in their own way."""
GENERAL = 5.0
"""Forward passes over the open-domain text, whose Hessian is taken as by a second-order criterion."""
UNITS = ("ffn", "kv_groups")
INVERTS = {"obs", "domain_dual"}


def timed(jobs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each job, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(one) for name, one in seconds.items()}


def compared(names: Sequence[str], model: Any, ids: Tensor, repeats: int) -> bool:
    """Print a line for each criterion; True where one is above its bound."""
    entries = [entry for entry in CRITERIA if entry.name in names]
    trained = copy.deepcopy(model).requires_grad_()
    batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model.model(input_ids=batch, use_cache=False)

    def backward() -> None:
        for batch in batches:
            trained(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            trained.zero_grad(set_to_none=True)

    jobs: dict[str, partial[Any]] = {"forward": partial(forward)}
    differentiate = {entry.name for entry in entries if entry.declared["needs"] == "gradients"} | BACKWARD
    if differentiate & set(names):
        jobs["backward"] = partial(backward)
    for entry in entries:
        criterion = CRITERIA.get(entry.name)()
        general = ids if isinstance(criterion, GeneralCriterion) else None
        jobs[entry.name] = partial(score_units, model, criterion, UNITS, ids, general=general)
    seconds = timed(jobs, repeats)
    print(f"{ids.numel()} tokens: " + ", ".join(f"{name} {seconds[name]:.2f} s" for name in list(jobs)[:2]))
    over = False
    for entry in entries:
        unit = "backward" if entry.name in differentiate else "forward"
        ratio = seconds[entry.name] / seconds[unit]
        bound = SECOND_ORDER.get(entry.name, BOUND)
        if jobs[entry.name].keywords["general"] is not None:
            bound += GENERAL * seconds["forward"] / seconds[unit]
        over |= ratio > bound
        passes = "forward and backward" if unit == "backward" else "forward"
        print(
            f"{entry.name:16} {seconds[entry.name]:7.2f} s = {ratio:5.2f} {passes} passes; bound {bound:.2f}"
        )
    return over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    model = tiny_model("llama", dtype="bfloat16", **RANDOM_LLAMA)
    size, threads = count(model).params / 1e6, torch.get_num_threads()
    print(f"random llama, {size:.1f}M parameters, bfloat16, {threads} threads")
    scored = [entry for entry in CRITERIA if set(UNITS) <= set(entry.declared["units"])]
    chosen = {entry.name: entry for entry in scored if not args.only or entry.name in args.only}
    hessians = [name for name in chosen if name in INVERTS]
    over = False
    for names, times in (([name for name in chosen if name not in INVERTS], 1), (hessians, 2)):
        shape = (times * args.tokens // args.seq_len, args.seq_len)
        ids = torch.randint(4, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        over |= bool(names) and compared(names, model, ids, args.repeats)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
