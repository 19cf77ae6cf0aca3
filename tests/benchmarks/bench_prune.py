"""Time of pruning beside a plain forward pass over the same calibration tokens; exits 1 above its bounds.

    PYTHONPATH=tests/support python tests/benchmarks/bench_prune.py [--model FOLDER] [--tokens 16384]

Three ratios, medians of runs that take turns in one process:
  prune     score, allocate and apply without repair (FLAP)             at most 1.3 forward passes
  repair    apply with least squares, statistics included               at most 5 forward passes
  rotation  score, allocate and apply of hidden channels (SliceGPT)     at most 5 forward passes
The forward pass is the decoder's, in the same batches, without logits. Default model: a random Llama of 12
layers.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks_model import RANDOM_LLAMA
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.models.forward import BATCH_TOKENS
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

BOUNDS = {"prune": 1.3, "repair": 5.0, "rotation": 5.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: a random Llama")
    parser.add_argument("--tokens", type=int, default=16384, help="calibration tokens")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    keep_freed_memory()

    if args.model:
        model = load_model(args.model, args.dtype, args.device)
    else:
        model = tiny_model("llama", dtype=args.dtype, **RANDOM_LLAMA).to(args.device)
    generator = torch.Generator().manual_seed(0)
    shape = (args.tokens // args.seq_len, args.seq_len)
    ids = torch.randint(4, model.config.vocab_size, shape, generator=generator)
    base = {"method": "flap", "target": {"non_embedding_ratio": 0.8}, "round_to": 32}
    plain = PruneConfig.model_validate(base | {"units": ["ffn"], "layout": "uniform", "repair": "none"})
    plan, _ = make_plan(model, plain, ids)
    turned = PruneConfig.model_validate(
        {
            "target": base["target"],
            "method": "shared_rotation",
            "units": ["hidden"],
            "round_to": 9,
            "repair": "rotation",
        }
    )
    repaired = plan.model_copy(update={"repair": "least_squares"})

    def forward(victim):
        with torch.no_grad():
            for batch in ids.split(max(1, BATCH_TOKENS // args.seq_len)):
                victim.model(input_ids=batch.to(args.device), use_cache=False)

    def prune(victim):
        made, _ = make_plan(victim, plain, ids)
        apply(victim, made)

    def repair(victim):
        apply(victim, repaired, ids)

    def rotation(victim):
        made, _ = make_plan(victim, turned, ids)
        apply(victim, made, ids)

    jobs = {"forward": forward, "prune": prune, "repair": repair, "rotation": rotation}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for run in range(args.repeats + 1):
        for name, job in jobs.items():
            victim = copy.deepcopy(model)
            began = time.perf_counter()
            job(victim)
            if args.device != "cpu":
                torch.cuda.synchronize()
            if run > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - began)

    median = {name: statistics.median(runs) for name, runs in seconds.items()}
    print(
        f"{args.model.name if args.model else 'random llama'}, {count(model).params / 1e6:.1f}M "
        f"parameters, {args.dtype}, "
        f"{args.device}, {torch.get_num_threads()} threads, {ids.numel()} tokens"
    )
    print(f"forward {median['forward']:.2f} s ({ids.numel() / median['forward']:.0f} tokens/s)")
    over = False
    for name, bound in BOUNDS.items():
        ratio = median[name] / median["forward"]
        over |= ratio > bound
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f} s"
        print(f"{name:8} {median[name]:.2f} s ({spread}) = {ratio:.2f} forward passes; bound {bound}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
