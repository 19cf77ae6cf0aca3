"""Pruning against fewer bits from weights that no 4-bit file held before; measures, and holds no bound.

    PYTHONPATH=tests/support python tests/benchmarks/bench_bits.py [--packages FOLDER] [key=value ...]

Trains the small model of bench_trained.py to the end and gives it to configs/compare_bits.yaml. Prints bytes
and perplexity of every file in llama.cpp, the larger first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench_trained import METRIC, ROOT, resprout, write_small

RATE = 3e-3
"""The learning rate at which bench_trained.py finds the model best."""


def main() -> int:
    """Train, prune, store, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=ROOT / ".resprout" / "packages")
    parser.add_argument("overrides", nargs="*", help="key=value, for all runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_small(Path(scratch), args.packages)
        given = (f"model.source={scratch}", f"recover.learning_rate={RATE}", *args.overrides)
        trained = resprout("run", "trained_base.yaml", *given)["exports"][0]["uri"]
        swept = resprout("sweep", "compare_bits.yaml", f"model.source={trained}", *args.overrides)
    rows: dict[tuple[str, str], tuple[int, float]] = {}
    for one in swept["variants"]:
        kept = f"{100 * one['settings']['prune.target.non_embedding_ratio']:g} %, trained on"
        for name, file in one["result"]["files"].items():
            dense, _, kind = name.rpartition(" ")
            rows[dense or kept, kind] = file["bytes"], file["metrics"][METRIC]
    print("| kept outside embeddings | type | kB | perplexity |\n| --- | --- | ---: | ---: |")
    for (model, kind), (size, found) in sorted(rows.items(), key=lambda row: -row[1][0]):
        print(f"| {model} | {kind.removeprefix('gguf:')} | {size / 1e3:.0f} | {found:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
