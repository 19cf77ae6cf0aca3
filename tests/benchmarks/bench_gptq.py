"""GPTQ in forward passes over its calibration, beside sums and solves; exits with 1 above a bound.

    PYTHONPATH=tests/support python tests/benchmarks/bench_gptq.py [--samples 16] [--length 512] [--layers 12]

A random Llama in float32, W4A16-G64. Each layer runs at most 3 times over the calibration; all that is
neither the sum of x x^T nor a solve takes at most 3 plain passes of the decoder, measured right before; the
process grows by less than the model's weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from benchmarks_model import RANDOM_LLAMA
from resprout.tasks.compressed_tensors.types import tensors_type
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.core.resources import peak_memory
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.forward import run_layerwise
from resprout.tasks.models.shape import count
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.quantize import rounding
from resprout.tasks.quantize.grid import Grid
from tiny_models import tiny_model

MOST_PASSES = 3


def timed(function: Callable[..., Any], spent: Counter[str], name: str) -> Callable[..., Any]:
    """The function, its seconds added to `spent`."""

    def call(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[name] += time.perf_counter() - began

    return call


def main() -> int:
    """Print passes, sums, solves and memory; 1 where a bound is exceeded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    keep_freed_memory()
    model = tiny_model("llama", **{**RANDOM_LLAMA, "num_hidden_layers": given.layers})
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32000, (given.samples, given.length), generator=generator)
    for _ in range(2):
        began = time.perf_counter()
        for _step in run_layerwise(model, ids):
            pass
        plain = time.perf_counter() - began

    rows: Counter[int] = Counter()
    for layer in anatomy(model).layers:
        layer.module.register_forward_pre_hook(
            lambda module, seen, at=layer.index: rows.update({at: len(seen[0])})
        )
    spent: Counter[str] = Counter()
    Gram.update = timed(Gram.update, spent, "sums")  # type: ignore[method-assign]
    rounding.solve = timed(rounding.solve, spent, "solves")
    before, began = peak_memory("cpu"), time.perf_counter()
    rounding.round_layers(model, Grid(tensors_type("W4A16-G64"), torch.float32), ids)
    total = time.perf_counter() - began
    grown, weights = peak_memory("cpu") - before, count(model).bytes
    runs = max(rows.values()) / given.samples
    passes = (total - sum(spent.values())) / plain
    print(f"{given.samples} x {given.length} tokens, plain pass {plain:.1f} s")
    print(f"each layer runs {runs:g} times over the calibration (at most {MOST_PASSES})")
    print(f"{passes:.2f} plain passes (at most {MOST_PASSES}), sums {spent['sums'] / plain:.2f}, "
          f"solves {spent['solves']:.1f} s")  # fmt: skip
    print(f"memory grows by {grown / 1e6:.0f} MB, the weights are {weights / 1e6:.0f} MB")
    return int(runs > MOST_PASSES or passes > MOST_PASSES or grown >= weights)


if __name__ == "__main__":
    sys.exit(main())
