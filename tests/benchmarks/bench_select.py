"""Selection at the size of real pools: seconds and memory, how they grow, and the speed of the divergence.

    PYTHONPATH=tests/support python tests/benchmarks/bench_select.py [--parts embeddings growth pool
    divergence embedders]
        [--pool instructions.jsonl.gz] [--model FOLDER] [--encoder FOLDER] [--rows 1000000]
        [--pool-rows 63108] [--turns 5] [--compared 48]

`embeddings`: so many made-up embeddings of 384 columns through clusters, budget and graph. `growth`: all of a
selection but the models, on 2 n and 8 n rows of the pool; `pool`: the same on the whole pool at a budget of 4
%, with what share of it embedding takes. `divergence`: both models on rows, against two plain forward passes.
`embedders`: what share each embedder has of the time of both models, where they see all rows and a fifth of
them; the sentence encoder with `--encoder`. Without `--pool` rows are made up, without `--model` the models
are tiny and random. Each part runs in a process of its own, whose peak of memory is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"{start}{middle}{end}" for start in "bdfgklmnprst" for middle in "aeiou" for end in "lmnrst"]
SEED = 17


class Known:
    """Divergences that cost nothing, in place of models."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(SEED)
        self.truth = rng.gamma(2.0, 0.05, rows)
        self.jsd, self.dense_nll = np.full(rows, np.nan), rng.gamma(3.0, 0.5, rows)

    def __call__(self, rows: Iterable[int], what: str = "rows") -> None:
        index = np.fromiter(rows, dtype=np.int64)
        self.jsd[index] = self.truth[index]


class NoRivals:
    """Questions of rows that all ask different things."""

    open_rows = 0

    def contested(self, among: Iterable[int]) -> list[int]:
        return []

    def settled(self, dense_nll: Any, contested: Iterable[int]) -> dict[int, int]:
        return {}


def made_up(count: int) -> list[dict[str, str]]:
    """Rows of thirty subjects, each with words of its own."""
    rng = np.random.default_rng(SEED)
    rows = []
    for number in range(count):
        own = WORDS[12 * (number % 30) :][:40]
        text = " ".join(rng.choice(own, 12)), " ".join(rng.choice(own, 40))
        rows.append({"id": f"{number:08d}", "instruction": text[0], "input": "", "output": text[1]})
    return rows


def rows_of(path: Path | None, count: int) -> list[dict[str, Any]]:
    """The first rows of the pool, with ids."""
    if path is None:
        return made_up(count)
    from itertools import islice

    from resprout.tasks.data.read import read_rows

    rows = (row for _, row in islice(read_rows(path), count))
    return [{"input": "", **row, "id": f"{number:08d}"} for number, row in enumerate(rows)]


def pool_of(rows: list[dict[str, Any]], share: float) -> Any:
    """A pool of rows, whose tokens are counted by their words."""
    from resprout.tasks.data.template import Encoded
    from resprout.tasks.select.pool import Pool

    tokens = np.array([40 + len(row["instruction"].split()) + len(row["output"].split()) for row in rows])
    budget = int(share * tokens.sum())
    encoded = [Encoded([1], [2])] * len(rows)
    whole = np.zeros(len(rows), dtype=bool)
    return Pool(rows, [row["id"] for row in rows], encoded, tokens, tokens, whole, [], budget, budget)


def config(**paser: Any) -> Any:
    from resprout.configs.schema import SelectConfig

    return SelectConfig.model_validate({"pool": [{"source": "x"}], "budget_ratio": 0.04, "paser": paser})


def chosen(rows: list[dict[str, Any]], share: float) -> dict[str, float]:
    """Seconds of each part of a selection without its models."""
    from resprout.tasks.core.job import silent
    from resprout.tasks.select import auto, embed
    from resprout.tasks.select.duplicates import Questions, lexical_vectors, near_equal

    pool, clock = pool_of(rows, share), [time.perf_counter()]
    list(near_equal(f"{row['instruction']} {row['input']} {row['output']}" for row in rows))
    clock.append(time.perf_counter())
    texts = [row["instruction"] for row in rows]
    embeddings = embed.tfidf(texts, SEED)
    clock.append(time.perf_counter())
    questions = Questions(rows, lexical_vectors(texts), 0.95)
    clock.append(time.perf_counter())
    given: Any = Known(len(rows))
    found = auto.select(config(), pool, embeddings, questions, given, SEED, silent)
    clock.append(time.perf_counter())
    filled = sum(found.outcome.filled) / pool.budget
    parts = ("near repeats", "embedding", "rival questions", "clusters, budget, graph")
    took = {name: b - a for name, a, b in zip(parts, clock, clock[1:], strict=False)}
    return {
        **took,
        "all": clock[-1] - clock[0],
        "compared rows": int((~np.isnan(given.jsd)).sum()),
        "filled": filled,
    }


def embeddings(args: argparse.Namespace) -> list[str]:
    from resprout.tasks.core.job import silent
    from resprout.tasks.select import auto

    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(50, 384)).astype(np.float32)
    points = np.empty((args.rows, 384), np.float32)
    for start in range(0, args.rows, 50_000):
        part = points[start : start + 50_000]
        part[:] = centres[rng.integers(0, 50, len(part))] + rng.normal(size=part.shape) * 2
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    row = {"instruction": "", "input": "", "output": ""}

    class Made:
        """Rows of three phrases of 20,000, each made when it is asked for."""

        def __len__(self) -> int:
            return args.rows

        def __getitem__(self, number: int) -> dict[str, str]:
            picked = np.random.default_rng(number).integers(0, 20_000, 3)
            return {**row, "instruction": ". ".join(f"phrase{one}" for one in picked)}

    from resprout.tasks.data.template import Encoded
    from resprout.tasks.select.pool import Pool

    tokens = rng.integers(50, 250, args.rows)
    budget = int(0.04 * tokens.sum())
    ids = [f"{number:08d}" for number in range(args.rows)]
    made: Any = Made()
    encoded = [Encoded([1], [2])] * args.rows
    whole = np.zeros(args.rows, dtype=bool)
    pool = Pool(made, ids, encoded, tokens, tokens, whole, [], budget, budget)
    questions: Any = NoRivals()
    given: Any = Known(args.rows)
    start = time.perf_counter()
    found = auto.select(config(), pool, points, questions, given, SEED, silent)
    took = time.perf_counter() - start
    filled = sum(found.outcome.filled) / budget
    return [f"{args.rows:,} embeddings of 384: {took:.0f} s, {100 * filled:.2f} % of the budget filled"]


def growth(args: argparse.Namespace) -> list[str]:
    rows = rows_of(args.pool, args.pool_rows)
    took = {count: chosen(rows[:count], 0.04)["all"] for count in (len(rows) // 4, len(rows))}
    (few, less), (many, more) = took.items()
    return [f"{few:,} rows {less:.1f} s, {many:,} rows {more:.1f} s: {more / less:.2f} times (at most 6)"]


def pool(args: argparse.Namespace) -> list[str]:
    rows = rows_of(args.pool, args.pool_rows)
    found = chosen(rows, 0.04)
    said = ", ".join(f"{name} {value:.1f} s" for name, value in list(found.items())[:4])
    return [
        f"{len(rows):,} rows at 4 %: {found['all']:.1f} s without the models ({said}), of which "
        f"{found['compared rows']:,.0f} rows would be compared; {100 * found['filled']:.2f} % filled"
    ]


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def models_and_rows(args: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """The model twice, and rows in its tokens."""
    from resprout.tasks.data.template import encode_rows
    from resprout.tasks.models.load import load_model, load_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model
        if folder is None:
            from tiny_models import write_tiny_folder

            folder = write_tiny_folder(Path(scratch) / "model", dtype="float32")
        dense, pruned = (load_model(folder, "float32", "cpu") for _ in range(2))
        tokenizer: Any = load_tokenizer(folder)
        every = encode_rows(tokenizer, rows_of(args.pool, args.compared), "alpaca", 256)
    return dense, pruned, [row for row in every if row.response_ids]


def divergence(args: argparse.Namespace) -> list[str]:
    import torch

    from resprout.tasks.core.job import silent
    from resprout.tasks.data.response import collate
    from resprout.tasks.select.divergence import batches_of, measure

    dense, pruned, encoded = models_and_rows(args)
    ids = [str(number) for number in range(len(encoded))]
    batches = batches_of([len(row) for row in encoded], "cpu")

    def plain() -> None:
        with torch.inference_mode():
            for indices in batches:
                batch = collate([encoded[index] for index in indices])
                for model in (dense, pruned):
                    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    ratios, speeds = [], []
    for turn in range(args.turns + 1):
        two = timed(plain)
        own = timed(lambda: measure(pruned, dense, encoded, ids, 1.0, silent))
        if turn:
            ratios.append(two / own)
            speeds.append(sum(map(len, encoded)) / own)
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    speed = f"{statistics.median(speeds):,.0f} tokens/s"
    return [f"divergence: {ratio} of the speed of two plain forward passes, {speed}"]


def embedders(args: argparse.Namespace) -> list[str]:
    from resprout.tasks.core.job import silent
    from resprout.tasks.select import embed
    from resprout.tasks.select.divergence import measure, prompt_states
    from resprout.tasks.select.kept_rows import KeptRows

    dense, pruned, encoded = models_and_rows(args)
    ids = [str(number) for number in range(len(encoded))]
    texts = [row["instruction"] for row in rows_of(args.pool, args.compared)]
    calls: dict[str, Callable[[], Any]] = {
        "both models": lambda: measure(pruned, dense, encoded, ids, 1.0, silent),
        "tfidf": lambda: embed.tfidf(texts, SEED),
        "hidden": lambda: prompt_states(dense, encoded, ids, KeptRows(None, silent), "pool"),
    }
    if args.encoder is not None:
        calls["minilm"] = lambda: embed.minilm(args.encoder, texts, texts, "float32", "cpu", silent)
    took = {name: list[float]() for name in calls}
    for turn in range(args.turns + 1):
        for name, call in calls.items():
            seconds = timed(call)
            if turn:
                took[name].append(seconds)
    each = {name: statistics.median(seconds) for name, seconds in took.items()}
    models = each.pop("both models")
    return [
        f"{name}: {args.compared / seconds:,.0f} rows/s, {seconds / (seconds + models):.1%} of a selection "
        f"in which the models see all rows, {seconds / (seconds + models / 5):.1%} where they see a fifth"
        for name, seconds in each.items()
    ]


PARTS = {
    "embeddings": embeddings,
    "growth": growth,
    "pool": pool,
    "divergence": divergence,
    "embedders": embedders,
}


def _in_process(name: str, args: argparse.Namespace) -> tuple[list[str], int]:
    """The lines of a part, and the peak of memory of this process in bytes."""
    return PARTS[name](args), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pool", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pool-rows", type=int, default=63_108, help="rows of the pool at most")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compared", type=int, default=48, help="rows of the parts with models")
    args = parser.parse_args()
    context, failed = multiprocessing.get_context("spawn"), 0
    for name in args.parts:
        try:
            # It also says where its process was killed, for memory say.
            with ProcessPoolExecutor(1, context) as process:
                lines, peak = process.submit(_in_process, name, args).result()
        except Exception:
            traceback.print_exc()
            print(f"{name} failed", file=sys.stderr)
            failed = 1
            continue
        for line in lines:
            print(f"{line}; peak {peak / 1e9:.2f} GB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
