"""What a table of layers says a pruned model takes, beside what it takes; exits 1 where they lie apart.

    PYTHONPATH=tests/support python tests/benchmarks/bench_latency.py [--ratios 0.8 0.6] [--repeats 9]

A random Llama of 12 layers in float32 is planned for shares of its latency (tasks/prune/latency.py, method
ziplm, ffn and kv_groups), cut, and its forward pass over the table's batch is timed in turns with the dense
model's. The measured share, a median of pairs, may differ from the plan's by 5 % of it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from benchmarks_model import RANDOM_LLAMA
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.models.forward import BATCH_TOKENS
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.interfaces import Bench
from resprout.tasks.prune.planning import plan_from
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

APART = 0.05


def seconds_of(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Seconds of one forward pass."""
    began = time.perf_counter()
    with torch.no_grad():
        model(ids, use_cache=False)
    return time.perf_counter() - began


def measured_share(dense: PreTrainedModel, pruned: PreTrainedModel, ids: torch.Tensor, repeats: int) -> float:
    """The pruned model's time over the dense one's, each pair run one right after the other."""
    pairs = [(seconds_of(dense, ids), seconds_of(pruned, ids)) for _ in range(repeats + 2)]
    return statistics.median(small / large for large, small in pairs[2:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    keep_freed_memory()
    dense = tiny_model("llama", dtype=args.dtype, **RANDOM_LLAMA)
    shape = shape_of(dense.config.to_dict())
    rows = min(args.tokens, BATCH_TOKENS) // args.seq_len
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, shape.vocab, (rows, args.seq_len), generator=generator)
    scores = [
        {
            "ffn": torch.rand(shape.ffn[layer], 1, generator=generator),
            "kv_groups": torch.rand(shape.kv_heads[layer], 1, generator=generator) * 300,
        }
        for layer in range(shape.layers)
    ]
    size, threads = count(dense).params / 1e6, torch.get_num_threads()
    print(f"random llama, {size:.1f}M parameters, {args.dtype}, {threads} threads, {ids.numel()} tokens")
    over = False
    for ratio in args.ratios:
        config = PruneConfig.model_validate(
            {
                "method": "ziplm",
                "repair": "none",
                "units": ["ffn", "kv_groups"],
                "layout": "per_layer",
                "round_to": 256,
                "target": {"latency_ratio": ratio},
            }
        )
        plan = plan_from(scores, shape, args.dtype, config, Bench(dense, ids))
        assert plan.latency is not None
        said = plan.latency.reached / plan.latency.dense
        pruned = copy.deepcopy(dense)
        apply(pruned, plan)
        found = measured_share(dense, pruned, ids, args.repeats)
        apart = found / said - 1
        over |= abs(apart) > APART
        print(
            f"asked {ratio:.2f}: table {said:.3f} of {plan.latency.dense:.0f} ms, measured {found:.3f}, "
            f"{apart:+.1%} apart; bound {APART:.0%}"
        )
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
