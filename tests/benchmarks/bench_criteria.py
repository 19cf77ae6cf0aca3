"""Seconds of every criterion beside plain passes over the same calibration tokens; exits 1 above a bound.

    PYTHONPATH=tests python tests/benchmarks/bench_criteria.py [--tokens 8192] [--repeats 3] [--only flap ...]

Medians of runs that take turns in one process, on a random Llama of 12 layers in bfloat16, units ffn and
kv_groups:
  needs weights or inputs   in decoder forward passes without logits; at most 1.15, of `obs` at most 5
  needs gradients           in forward and backward passes of the loss, with all gradients; at most 1.15
  needs the model           in decoder forward passes; no bound
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
from benchmarks_model import RANDOM_LLAMA

from resprout.tasks.models.size import count
from resprout.tasks.models.walk import BATCH_TOKENS
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.score import score_units
from tiny_models import tiny_model

BOUNDS = {"weights": 1.15, "inputs": 1.15, "gradients": 1.15}
SECOND_ORDER = {"obs": 5.0}
UNITS = ("ffn", "kv_groups")


def timed(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each job, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(one) for name, one in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    model = tiny_model("llama", dtype="bfloat16", **RANDOM_LLAMA)
    trained = copy.deepcopy(model).requires_grad_()
    shape = (args.tokens // args.seq_len, args.seq_len)
    ids = torch.randint(4, model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    batches = ids.split(max(1, BATCH_TOKENS // args.seq_len))

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                model.model(input_ids=batch, use_cache=False)

    def backward() -> None:
        for batch in batches:
            trained(input_ids=batch, labels=batch, use_cache=False).loss.backward()
            trained.zero_grad(set_to_none=True)

    chosen = [
        entry
        for entry in CRITERIA
        if set(UNITS) <= set(entry.declared["units"]) and (not args.only or entry.name in args.only)
    ]
    jobs: dict[str, Callable[[], Any]] = {"forward": forward, "backward": backward}
    for entry in chosen:
        criterion = CRITERIA.get(entry.name)()
        jobs[entry.name] = lambda criterion=criterion: score_units(model, criterion, UNITS, ids)
    seconds = timed(jobs, args.repeats)
    size, threads = count(model).params / 1e6, torch.get_num_threads()
    print(f"random llama, {size:.1f}M parameters, bfloat16, {threads} threads, {ids.numel()} tokens")
    print(f"forward {seconds['forward']:.2f} s, with backward {seconds['backward']:.2f} s")
    over = False
    for entry in chosen:
        needs = entry.declared["needs"]
        unit = "backward" if needs == "gradients" else "forward"
        ratio = seconds[entry.name] / seconds[unit]
        bound = SECOND_ORDER.get(entry.name, BOUNDS.get(needs))
        over |= bound is not None and ratio > bound
        passes = "forward and backward" if unit == "backward" else "forward"
        limit = f"bound {bound}" if bound is not None else "no bound"
        print(f"{entry.name:16} {seconds[entry.name]:7.2f} s = {ratio:5.2f} {passes} passes; {limit}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
