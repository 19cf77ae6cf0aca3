"""The table of tests/benchmarks/README.md: every pruning preset at one size, over several seeds.

    python tests/benchmarks/table_methods.py [--seeds 17 18 19] [--keep FOLDER] [key=value ...]

Runs configs/compare_methods.yaml and compare_shapes.yaml for each seed through `resprout sweep`, whose
results `--keep` leaves in a folder and takes from there where they are already, and prints Markdown. Means
over the seeds, with the standard deviation of perplexity; seconds of the processor and the largest resident
set are those of the stages `score`, `plan` and `prune`, each counted where it was made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SWEEPS = ("compare_methods", "compare_shapes")
PRUNING = ("score", "plan", "prune")
HEAD = ("method", "units", "layout", "kept", "perplexity", "accuracy", "CPU s", "peak MB")


@dataclass
class Row:
    """One variant over the seeds."""

    kept: list[float] = field(default_factory=list)
    perplexity: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        mean = statistics.mean
        spread = f" ± {statistics.stdev(self.perplexity):.2f}" if len(self.perplexity) > 1 else ""
        return (
            f"{mean(self.kept):.3f}",
            f"{mean(self.perplexity):.2f}{spread}",
            f"{mean(self.accuracy):.3f}",
            f"{mean(self.cpu):.0f}" if self.cpu else "-",
            f"{max(self.peak) / 1e6:,.0f}" if self.peak else "-",
        )


def swept(name: str, seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """What `resprout sweep --json` says, from the folder where it was kept."""
    kept = folder / f"{name}-{seed}.json"
    if not kept.exists():
        program = Path(sys.executable).with_name("resprout")
        config = ROOT / "configs" / f"{name}.yaml"
        command = [str(program), "sweep", str(config), f"seed={seed}", *overrides, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        kept.write_text(done.stdout.splitlines()[-1])
    return dict(json.loads(kept.read_text()))


def metric(metrics: dict[str, float], part: str) -> float:
    """The one metric whose name has this part."""
    (found,) = (value for name, value in metrics.items() if part in name)
    return found


def read(results: Iterable[dict[str, Any]]) -> tuple[Row, dict[tuple[str, str, str], Row]]:
    """The dense model's row and those of all variants, by method, units and layout."""
    variants = [variant for result in results for variant in result["variants"]]
    stages = [stage for one in variants for stage in one["result"]["stages"]]
    costs = {one["artifact"]["digest"]: one for one in stages if not one["cached"]}
    dense, rows = Row(), defaultdict[tuple[str, str, str], Row](Row)
    for variant in variants:
        settings, models = variant["settings"], variant["result"]["models"]
        units = ", ".join(settings.get("prune.units", ["ffn"]))
        row = rows[settings["prune.method"], units, settings.get("prune.layout", "uniform")]
        for one, model in ((dense, models["dense"]), (row, models["pruned"])):
            one.kept.append(model["non_embedding_params"] / models["dense"]["non_embedding_params"])
            one.perplexity.append(metric(model["metrics"], "_ppl_"))
            one.accuracy.append(model["metrics"]["zero_shot_mean_acc"])
        digests = [one["artifact"]["digest"] for one in variant["result"]["stages"] if one["name"] in PRUNING]
        if all(digest in costs for digest in digests):
            row.cpu.append(sum(costs[digest]["cpu_seconds"] for digest in digests))
            row.peak.append(max(costs[digest]["peak_memory_bytes"] or 0 for digest in digests))
    return dense, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--keep", type=Path, help="folder of the sweeps' results")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    results = [swept(name, seed, args.overrides, folder) for seed in args.seeds for name in SWEEPS]
    dense, rows = read(results)
    print("| " + " | ".join(HEAD) + " |")
    print("| --- " * 3 + "| ---: " * (len(HEAD) - 3) + "|")
    print("| " + " | ".join(("dense", "", "", *dense.cells())) + " |")
    for names, row in sorted(rows.items(), key=lambda one: statistics.mean(one[1].perplexity)):
        print("| " + " | ".join((*names, *row.cells())) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
