"""Peak memory of pruning a model that is read one layer at a time, beside the size of its files.

    PYTHONPATH=tests/support python tests/benchmarks/bench_stream.py [--gigabytes 6] [--methods flap ...]

Writes a Llama of random bfloat16 weights to a temporary folder (give --folder for one with room), then runs
score, plan and prune with `prune.memory: stream`, each method in a process of its own. The bound is 0.25 of
the files plus 1.5 GB. Exits with 1 where it is exceeded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.resources import peak_memory
from resprout.tasks.models.offload import SafetensorsWriter
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.stage import plan, prune, score

HIDDEN, FFN, HEADS, GROUPS, VOCAB = 2560, 6912, 20, 4, 32000
METHODS = ("magnitude", "wanda_sp", "flap", "activation", "least_squares")
"""Presets, and the repair that looks at data."""


def write_model(folder: Path, gigabytes: float) -> int:
    """A random Llama of at least that size; returns the bytes of its weights."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": VOCAB,
        "num_hidden_layers": 1,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    one = shape_of(config)
    each = one.layer_params(one.widths(0))
    config["num_hidden_layers"] = int((gigabytes * 1e9 / 2 - (one.params - each)) / each) + 1
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict(shape_of(config).tensors())
    writer = SafetensorsWriter(folder / "model.safetensors", tensors, "bfloat16")
    generator = torch.Generator().manual_seed(0)
    for name, dims in tensors.items():
        scale = 1.0 if len(dims) == 1 else dims[-1] ** -0.5
        values = torch.ones(dims) if len(dims) == 1 else torch.randn(dims, generator=generator) * scale
        writer.put(name, values.bfloat16())
    writer.close()
    return (folder / "model.safetensors").stat().st_size


def run(method: str, folder: Path, calibration: Path, out: Path) -> None:
    """Score, plan and prune in this process, and print what that took."""
    given = {"method": "wanda_sp", "repair": method} if method == "least_squares" else {"method": method}
    if method not in ("flap", "least_squares"):
        given["repair"] = "none"
    config = PruneConfig.model_validate(
        {
            **given,
            "units": ["ffn", "kv_groups"],
            "layout": "uniform",
            "target": {"params_ratio": 0.8},
            "memory": "stream",
        }
    )
    inputs = {"model": folder, "calibration": calibration}
    began = time.perf_counter()
    for name, stage in (("scores", score), ("plan", plan), ("pruned", prune)):
        inputs[name] = out / name
        inputs[name].mkdir()
        stage.body(Job(config), inputs, inputs[name], silent)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_bytes": peak_memory("cpu")}))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--run", nargs=4, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        method, *paths = given.run
        run(method, *map(Path, paths))
        return 0
    with TemporaryDirectory(dir=given.folder) as name:
        place = Path(name)
        for part in ("model", "calibration"):
            (place / part).mkdir()
        size = write_model(place / "model", given.gigabytes)
        ids = torch.randint(4, VOCAB, (given.tokens // 256, 256), generator=torch.Generator().manual_seed(1))
        save_file({"input_ids": ids}, place / "calibration" / "calibration.safetensors")
        bound = 0.25 * size + 1.5e9
        print(f"weights {size / 1e9:.2f} GB, {given.tokens} tokens; bound {bound / 1e9:.2f} GB resident")
        worst = 0
        for method in given.methods:
            with TemporaryDirectory(dir=place) as out:
                paths = [str(place / "model"), str(place / "calibration"), out]
                command = [sys.executable, __file__, "--run", method, *paths]
                found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(f"{method:14s} {found['peak_bytes'] / 1e9:6.2f} GB peak, {found['seconds']:6.1f} s")
            worst = max(worst, found["peak_bytes"])
    return int(worst > bound)


if __name__ == "__main__":
    sys.exit(main())
