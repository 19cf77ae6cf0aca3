"""A forward pass with freed memory kept (tasks/core/malloc_tuning.py), beside one as glibc does it.

    PYTHONPATH=tests/support python tests/benchmarks/bench_malloc.py [--tokens 8192] [--repeats 5]

A random Llama of 12 layers in float32, each way in a process of its own, in turns; prints seconds, page
faults and the largest resident set. Exits with 1 where keeping is slower.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from benchmarks_model import RANDOM_LLAMA
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.core.resources import peak_memory
from resprout.tasks.models.forward import BATCH_TOKENS
from tiny_models import tiny_model

ROUNDS = 3


def run(tokens: int, repeats: int) -> None:
    """Print what forward passes take in this process."""
    model = tiny_model("llama", dtype="float32", **RANDOM_LLAMA)
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(4, model.config.vocab_size, (tokens // 256, 256), generator=generator)
    seconds: list[float] = []
    faults = 0
    for _ in range(repeats + 1):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        with torch.no_grad():
            for ids in batches.split(BATCH_TOKENS // 256):
                model.model(input_ids=ids, use_cache=False)
        seconds.append(time.perf_counter() - began)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    median = statistics.median(seconds[1:])
    print(json.dumps({"seconds": median, "faults": faults, "peak_bytes": peak_memory("cpu")}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", choices=("kept", "given_back"), default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        if given.run == "kept" and not keep_freed_memory():
            sys.exit("this system's allocator is not glibc's, or has settings of its own")
        run(given.tokens, given.repeats)
        return 0
    found: dict[str, list[dict[str, float]]] = {"given_back": [], "kept": []}
    for _ in range(ROUNDS):
        for way, runs in found.items():
            command = [sys.executable, __file__, "--run", way]
            command += ["--tokens", str(given.tokens), "--repeats", str(given.repeats)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    for way, runs in found.items():
        middle = {key: statistics.median(one[key] for one in runs) for key in runs[0]}
        print(
            f"{way:10s} {middle['seconds']:6.2f} s, {middle['faults']:9.0f} page faults, "
            f"{middle['peak_bytes'] / 1e6:6.0f} MB at the peak"
        )
    pairs = zip(found["kept"], found["given_back"], strict=True)
    share = statistics.median(kept["seconds"] / back["seconds"] for kept, back in pairs)
    print(f"kept takes {share:.2f} of the time; bound 1.00")
    return int(share > 1)


if __name__ == "__main__":
    sys.exit(main())
