"""The table of tests/benchmarks/README.md: pruning presets at one size, over several seeds.

    python tests/benchmarks/table_methods.py [--seeds 17 18 19] [--keep FOLDER] [--beside FOLDER ...]
        [--sweep configs/compare_methods.yaml] [key=value ...]

Runs the sweep for each seed and prints Markdown. What the table needs of it is left in `--keep`, as one JSON
object a line, and taken from there where it is already. Means over the models of a method, with the standard
deviation of perplexity; seconds of the processor and the largest resident set are those of the stages
`score`, `plan` and `prune`, each counted where it was made. `--beside` adds the perplexities of other
folders, and how alike they order the methods (Spearman's rank correlation, of those that both have). Methods
that train in themselves stand apart at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRUNING = ("score", "plan", "prune")
HEAD = ("method", "units", "layout", "models", "kept", "perplexity", "accuracy", "CPU s", "peak MB")
DENSE = ("dense", "", "")
TRAINED = {"fusegpt"}

Facts = dict[str, Any]
"""Of one model: method, units, layout, kept, perplexity, accuracy, digests of its PRUNING stages, and seconds
and bytes of those that were made for it, not found in the cache."""
Costs = dict[str, tuple[float, float]]
Key = tuple[str, str, str]


def swept(config: Path, seed: int, overrides: list[str], folder: Path) -> list[Facts]:
    """The models of a sweep, from the folder where they were kept or measured now."""
    kept = folder / f"{config.stem}-{seed}.jsonl"
    if not kept.exists():
        program = Path(sys.executable).with_name("resprout")
        command = [str(program), "sweep", str(config), f"seed={seed}", *overrides, "--json"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if not done.stdout:
            raise SystemExit(done.returncode)
        found = facts(json.loads(done.stdout.splitlines()[-1]))
        kept.write_text("".join(json.dumps(one) + "\n" for one in found))
    return [json.loads(line) for line in kept.read_text().splitlines()]


def read(folder: Path) -> Iterator[Facts]:
    """Every model that a folder holds."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from (json.loads(line) for line in path.read_text().splitlines())


def facts(result: dict[str, Any]) -> Iterator[Facts]:
    """The dense model and every variant that `resprout sweep --json` says was made; others are told of."""
    first = True
    for variant in result["variants"]:
        settings, models = variant["settings"], variant["result"]["models"]
        if variant["result"]["status"] != "done":
            print(f"left out, as it failed: {variant['name']} {settings}", file=sys.stderr)
            continue
        if first:
            first = False
            yield {
                **dict(zip(HEAD, DENSE, strict=False)),
                **_quality(models, "dense"),
                "digests": [],
                "made": {},
            }
        stages = [one for one in variant["result"]["stages"] if one["name"] in PRUNING]
        yield {
            "method": variant["result"]["method"],
            "units": ", ".join(settings.get("prune.units", ["ffn"])),
            "layout": settings.get("prune.layout", "uniform"),
            **_quality(models, "pruned"),
            "digests": [one["artifact"]["digest"] for one in stages],
            "made": {
                one["artifact"]["digest"]: (one["cpu_seconds"], one["peak_memory_bytes"] or 0)
                for one in stages
                if not one["cached"]
            },
        }


def _quality(models: dict[str, Any], name: str) -> Facts:
    model, metrics = models[name], models[name]["metrics"]
    (perplexity,) = (value for key, value in metrics.items() if "_ppl_" in key)
    found = {
        "kept": model["non_embedding_params"] / models["dense"]["non_embedding_params"],
        "perplexity": perplexity,
    }
    if "zero_shot_mean_acc" in metrics:
        found["accuracy"] = metrics["zero_shot_mean_acc"]
    return found


def by_method(found: Iterable[Facts]) -> dict[Key, list[Facts]]:
    """All models of a method, units and layout, the best mean perplexity first.

    A model that comes out of several seeds, of a method that looks at no data, counts once.
    """
    rows = defaultdict[Key, list[Facts]](list)
    for one in found:
        row = rows[one["method"], one["units"], one["layout"]]
        if one["digests"][-1:] not in [other["digests"][-1:] for other in row]:
            row.append(one)
    return dict(sorted(rows.items(), key=lambda row: mean(row[1], "perplexity") or 0.0))


def mean(row: list[Facts], name: str) -> float | None:
    """Over the models of a row that have it."""
    values = [one[name] for one in row if name in one]
    return statistics.mean(values) if values else None


def spent(row: list[Facts], costs: Costs) -> tuple[float, float] | None:
    """Mean seconds and largest bytes of the models all of whose stages were measured; None: of none."""
    whole = [
        [costs[digest] for digest in one["digests"]] for one in row if costs.keys() >= set(one["digests"])
    ]
    if not any(whole):
        return None
    seconds = statistics.mean(sum(stage[0] for stage in stages) for stages in whole)
    return seconds, max(stage[1] for stages in whole for stage in stages)


def cells(row: list[Facts], costs: Costs) -> tuple[str, ...]:
    """As in HEAD, but the names."""
    perplexity = [one["perplexity"] for one in row]
    spread = f" ± {statistics.stdev(perplexity):,.2f}" if len(set(perplexity)) > 1 else ""
    accuracy, cost = mean(row, "accuracy"), spent(row, costs)
    return (
        str(len(row)),
        f"{mean(row, 'kept'):.3f}",
        f"{statistics.mean(perplexity):,.2f}{spread}",
        "" if accuracy is None else f"{accuracy:.3f}",
        *(("", "") if cost is None else (f"{cost[0]:.0f}", f"{cost[1] / 1e6:,.0f}")),
    )


def alike(names: list[Key], one: dict[Key, list[Facts]], other: dict[Key, list[Facts]]) -> float:
    """Spearman's rank correlation of the mean perplexities of two tables."""
    from scipy.stats import spearmanr

    orders = [[mean(table[name], "perplexity") for name in names] for table in (one, other)]
    return float(spearmanr(*orders).statistic)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--sweep", type=Path, default=ROOT / "configs" / "compare_methods.yaml")
    parser.add_argument("--keep", type=Path, help="folder of the sweeps' results, for one model and set")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="folders of another model or set")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    found = [one for seed in args.seeds for one in swept(args.sweep, seed, args.overrides, folder)]
    # Of a stage that was made again, the first time counts: a process holds what earlier variants left in it.
    costs: Costs = {digest: cost for one in reversed(found) for digest, cost in one["made"].items()}
    rows = by_method(found)
    beside = {one.name.removeprefix("methods_"): by_method(read(one)) for one in args.beside}
    head = (*HEAD, *beside)
    for title, apart in (("", False), ("\nTrained in themselves:\n\n", True)):
        print(f"{title}| " + " | ".join(head) + " |")
        print("| --- " * 3 + "| ---: " * (len(head) - 3) + "|")
        for names, row in rows.items():
            if (names[0] in TRAINED) == apart:
                others = [cells(there[names], {})[2] if names in there else "" for there in beside.values()]
                print("| " + " | ".join((*names, *cells(row, costs), *others)) + " |")
    for name, there in beside.items():
        both = [names for names in rows if names in there and names != DENSE]
        equal = [names for names in both if names[2] == "uniform"]
        print(
            f"\n{name}: Spearman's rank correlation {alike(both, rows, there):.2f} over {len(both)} methods, "
            f"{alike(equal, rows, there):.2f} over the {len(equal)} uniform ones"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
