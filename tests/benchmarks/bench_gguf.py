"""Writing a GGUF file, in bytes a second and in memory; exits with 1 outside a bound.

    PYTHONPATH=tests/support python tests/benchmarks/bench_gguf.py [--layers 30]

A random Llama in float32, written in F32 and F16, beside a plain file of as many bytes on the same disk, in
turn. At least 200 MB a second or half of what the plain file reaches; the process grows by at most 0.2 of
the weights meanwhile, so that they are never there twice.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks_model import RANDOM_LLAMA
from resprout.tasks.core.resources import peak_memory
from resprout.tasks.gguf.types import GgufType
from resprout.tasks.gguf.writer import write_gguf
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.models.shape import count
from tiny_models import tiny_model, write_byte_tokenizer

ROUNDS, LEAST, SHARE, GROWTH = 5, 200e6, 0.5, 0.2


def plain(file: Path, size: int) -> None:
    """Write a file of so many bytes."""
    block = os.urandom(1 << 22)
    with file.open("wb") as out:
        for _ in range(size // len(block)):
            out.write(block)


def main() -> int:
    """Print speeds and memory; 1 where a bound is not held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=30)
    given = parser.parse_args()
    model = tiny_model("llama", **{**RANDOM_LLAMA, "num_hidden_layers": given.layers})
    weights, failed = count(model).bytes, False
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_byte_tokenizer(root / "tokenizer")
        tokenizer = load_tokenizer(root / "tokenizer")
        # The first call imports what later ones have.
        write_gguf(model, tokenizer, root / "tokenizer", root / "file", GgufType.F16)
        before = psutil.Process().memory_info().rss
        for kind in (GgufType.F32, GgufType.F16):
            speeds: dict[str, list[float]] = {"gguf": [], "plain": []}
            for _ in range(ROUNDS):
                began = time.perf_counter()
                write_gguf(model, tokenizer, root / "tokenizer", root / "file", kind)
                size = (root / "file").stat().st_size
                speeds["gguf"].append(size / (time.perf_counter() - began))
                began = time.perf_counter()
                plain(root / "plain", size)
                speeds["plain"].append(size / (time.perf_counter() - began))
            ours, disk = (statistics.median(speeds[name]) for name in ("gguf", "plain"))
            least = min(LEAST, SHARE * disk)
            failed |= ours < least
            print(
                f"{kind.name}: {size / 1e6:.0f} MB at {ours / 1e6:.0f} MB/s (at least {least / 1e6:.0f}), "
                f"a plain file at {disk / 1e6:.0f} MB/s"
            )
    grown = max(0, peak_memory("cpu") - before)
    print(f"memory grows by {grown / 1e6:.0f} MB, the weights are {weights / 1e6:.0f} MB (at most {GROWTH})")
    return int(failed or grown > GROWTH * weights)


if __name__ == "__main__":
    sys.exit(main())
