"""What sharing out costs and gains: seconds and store requests of a trivial shard, two workers beside one.

    PYTHONPATH=tests/support python tests/benchmarks/bench_shards.py [--shards 10 100] [--dask-shards 40]

  shards    seconds a shard through threads and through two Dask workers, and calls of the store's driver.
            Bound: each of the largest number makes no more calls than each of the smallest, and takes at most
            twice as long.
  workers   one Dask worker / two: 8 shards that each wait for a second, and the evaluation of a small random
            model in 8 shards, which needs two free cores. Bound: waiting shards gain at least 1.6.
Exits 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1", DO_NOT_TRACK="1", PREFECT_LOGGING_LEVEL="CRITICAL", MLFLOW_LOGGING_LEVEL="WARNING"
)

from resprout.configs.load import Loaded, load
from resprout.configs.schema import EvaluateConfig
from resprout.infra.store.driver import Driver
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.core.job import Job
from tiny_run import words, write_run
from toys import Knobs, whole

BOUND_GAIN = 1.6
SMALL_LLAMA = {
    "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 512,
}  # fmt: skip


class Counting:
    """A driver that counts its calls by name."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if name in ("uri", "folder"):  # ask no store
            return found

        def call(*given: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return found(*given, **named)

        return call


def measured(loaded: Loaded, steps: Callable[[Any], Any]) -> tuple[Any, Counter[str]]:
    """What `steps(run)` returns in a flow of its own, and the driver's calls."""
    from prefect import flow

    from resprout.flows.session import NoDisplay
    from resprout.flows.shards import TaskRunnerFanOut
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.lease import LeaseLockManager
    from resprout.infra.store.results import ArtifactResults
    from resprout.infra.store.store import ArtifactStore
    from resprout.tasks.core.run import Run

    store = ArtifactStore.from_config(loaded.config.infra.store, loaded.home)
    store.driver = counting = Counting(store.driver)  # type: ignore[assignment]
    tracker = Tracker(loaded.config.infra.mlflow, loaded.home)
    tracker.connect()

    @flow(name="bench")
    def bench() -> Any:
        run = Run(
            store=store,
            tracker=tracker,
            locks=LeaseLockManager(store.driver),
            results=ArtifactResults.of(store),
            display=NoDisplay(),
            home=loaded.home,
            mlflow_run_id=tracker.start("bench", {}),
            shards=loaded.config.infra.shards,
        )
        run.fan_out = TaskRunnerFanOut(loaded, run)
        try:
            return steps(run)
        finally:
            run.fan_out.close()

    return bench(), counting.calls


def trivial(config: Path, home: Path, shards: int, *options: str) -> tuple[float, int]:
    """Seconds of a stage of trivial shards once its workers are warm, and the driver's calls."""
    loaded = load(config, [f"infra.home={home}", f"infra.shards={shards}", *options])

    def steps(run: Any) -> float:
        whole(replace(run, shards=4), Job(Knobs(text="warm")), role="warm")
        run.store.driver.calls.clear()
        began = time.perf_counter()
        whole(run, Job(Knobs(text="x" * shards)), role=f"{shards}")
        return time.perf_counter() - began

    seconds, calls = measured(loaded, steps)
    return seconds, sum(calls.values())


def waiting(config: Path, home: Path, workers: int) -> float:
    """Seconds of 8 shards that wait for a second each, on that many warm Dask workers."""
    options = ("infra.task_runner=dask", f"infra.workers={workers}", "infra.shards=8")
    loaded = load(config, [f"infra.home={home}", *options])

    def steps(run: Any) -> float:
        whole(run, Job(Knobs(text="warm")), role="warm")
        began = time.perf_counter()
        whole(run, Job(Knobs(text="x" * 8, seconds=1.0)), role="wait")
        return time.perf_counter() - began

    return measured(loaded, steps)[0]


def put(run: Any, folder: Path) -> ArtifactRef:
    """The folder as an artifact."""
    manifest = run.store.publish(folder)
    return ArtifactRef(kind="given", digest=manifest.digest, key="", record="0" * 64, uri="", bytes=0)


def evaluation(config: Path, root: Path, workers: int) -> float:
    """Seconds to evaluate a small model in 8 shards on that many warm Dask workers."""
    from resprout.tasks.evaluate.stage import evaluate
    from tiny_models import write_tiny_folder

    options = ("infra.task_runner=dask", "infra.shards=8", f"infra.workers={workers}")
    loaded = load(config, [f"infra.home={root / f'workers{workers}'}", *options])
    section = EvaluateConfig.model_validate(
        {"perplexity": {"text": [{"source": "x"}], "window_tokens": 256, "limit_tokens": 65536}}
    )

    def steps(run: Any) -> float:
        model, text = root / f"model{workers}", root / f"text{workers}"
        write_tiny_folder(model, **SMALL_LLAMA)
        text.mkdir()
        (text / "text.jsonl").write_text(f'{{"text": "{words(66000, 1)}"}}\n')
        given = {"model": put(run, model), "text": put(run, text)}
        for seed in (0, 1):  # the first imports torch
            began = time.perf_counter()
            evaluate(run, Job(section, seed=seed, dtype="float32"), given, f"seed {seed}")
        return time.perf_counter() - began

    return measured(loaded, steps)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100], help="numbers of trivial shards")
    parser.add_argument("--dask-shards", type=int, default=40, help="trivial shards through Dask; 0: none")
    parser.add_argument("--skip-workers", action="store_true", help="leave out one worker beside two")
    args = parser.parse_args()

    from prefect.testing.utilities import prefect_test_harness

    with tempfile.TemporaryDirectory() as folder, prefect_test_harness(server_startup_timeout=120):
        root = Path(folder)
        config = write_run(root)
        found = []
        for shards in args.shards:
            seconds, calls = trivial(config, root / f"threads{shards}", shards, "infra.workers=2")
            found.append((shards, seconds / shards, calls))
            print(
                f"threads: {shards} shards in {seconds:.1f} s, {1000 * seconds / shards:.0f} ms each; "
                f"{calls} driver calls, {calls / shards:.1f} each"
            )
        if args.dask_shards:
            options = ("infra.task_runner=dask", "infra.workers=2")
            seconds, _ = trivial(config, root / "dask", args.dask_shards, *options)
            each = 1000 * seconds / args.dask_shards
            print(f"dask, 2 workers: {args.dask_shards} shards in {seconds:.1f} s, {each:.0f} ms each")
        gain = BOUND_GAIN
        if not args.skip_workers:
            one, two = (waiting(config, root / f"waiting{count}", count) for count in (1, 2))
            gain = one / two
            print(f"8 shards of a second: {one:.1f} s on 1 worker, {two:.1f} s on 2, ratio {gain:.2f}")
            one, two = evaluation(config, root, 1), evaluation(config, root, 2)
            print(f"evaluation in 8 shards: {one:.1f} s on 1 worker, {two:.1f} s on 2, ratio {one / two:.2f}")
    (few, cost, calls), (many, later, more) = found[0], found[-1]
    return 1 if more / many > calls / few or later > 2 * cost or gain < BOUND_GAIN else 0


if __name__ == "__main__":
    sys.exit(main())
