"""Stages `acquire_*`: a model as a safetensors folder, data as JSONL, from sources pinned before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.filesystem import private_folder
from resprout.tasks.acquire.choose import choose
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel, AcquireTask
from resprout.tasks.acquire.model import convert_pickle, copy_model, dequantise, keep_file
from resprout.tasks.acquire.rows import (
    Counts,
    Item,
    Seen,
    document_items,
    instruction_items,
    raw_items,
    taken,
    text_items,
    write_jsonl,
)
from resprout.tasks.acquire.source import fetch
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Model, stage
from resprout.tasks.models.shape import read_config, shape_of

logger = logging.getLogger(__name__)


@stage(
    "acquire_model",
    kind="model",
    title="acquire",
    gives="source",
    leaves=Model("dense"),
    weights=True,
    reported=True,
    libraries=("transformers",),
    computes=False,
    brings="Source model",
)
def acquire_model(
    job: Job[AcquireModel], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write config.json, safetensors, tokenizer files and `source.json` {source_bytes, source_format}.

    Safetensors are copied in the dtype they have; GGUF and pickles are converted to `config.dtype`.
    """
    config = job.config.config
    with private_folder(job.config.context.home / "tmp") as scratch:
        files = fetch(job.config.pinned, job.config.context, scratch)
        chosen = choose(files, job.config.wanted, config.source)
        if chosen.format == "safetensors":
            copy_model(chosen, files, job.config.pinned, workdir, progress)
        elif chosen.format == "gguf":
            dequantise(chosen, files, workdir, scratch, config.dtype, progress)
        else:
            convert_pickle(chosen, files, workdir, scratch, config.dtype, progress)
    if job.config.wanted.purpose == "model":
        from resprout.tasks.models.load import check_weights

        shape_of(read_config(workdir, config.source))
        check_weights(workdir, config.source, config.trust_remote_code)


@stage(
    "acquire_file",
    kind="quantized",
    title="acquire",
    weights=True,
    libraries=("transformers",),
    computes=False,
    brings="Source file",
)
def acquire_file(
    job: Job[AcquireModel], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the GGUF file of the source as it is, model.gguf, with config and tokenizer beside it."""
    config = job.config.config
    with private_folder(job.config.context.home / "tmp") as scratch:
        files = fetch(job.config.pinned, job.config.context, scratch)
        if choose(files, job.config.wanted, config.source).format != "gguf":
            raise BadInput(
                f"compare.baselines holds source_file, but {config.source} is no GGUF file; leave it out"
            )
        keep_file(files, workdir, scratch)


@stage(
    "acquire_rows",
    kind="rows",
    title="acquire",
    reported=True,
    seeded=True,
    computes=False,
    brings="Recovery data",
)
def acquire_rows(
    job: Job[AcquireData], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `rows.jsonl`: {"id", "instruction", "input", "output", "category", "source"}; each id once."""
    counts = Counts()
    items_of = partial(instruction_items, counts=counts)
    _write(job.config, job.seed, workdir / "rows.jsonl", items_of, progress, unique=True, counts=counts)


@stage(
    "acquire_documents", kind="documents", title="acquire", seeded=True, computes=False, brings="Documents"
)
def acquire_documents(
    job: Job[AcquireData], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `documents.jsonl`: {"id", "name", "markup", "text", "source"}; each text once."""
    counts = Counts()
    items_of = partial(document_items, counts=counts)
    _write(job.config, job.seed, workdir / "documents.jsonl", items_of, progress, unique=True, counts=counts)


@stage("acquire_text", kind="text", title="acquire", seeded=True, computes=False, brings="Running text")
def acquire_text(
    job: Job[AcquireData], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `text.jsonl`: {"text", "source"}; each text once."""
    _write(job.config, job.seed, workdir / "text.jsonl", text_items, progress, unique=True)


@stage("acquire_task", kind="task-data", title="acquire", seeded=True, computes=False, brings="Task data")
def acquire_task(
    job: Job[AcquireTask], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `rows.jsonl` with the columns that the data has, and the lm-eval task's settings as `task.json`.

    Solved examples are `examples.jsonl`. Repeated rows stay, as a benchmark counts them.
    """
    _write(job.config.data, job.seed, workdir / "rows.jsonl", raw_items, progress, unique=False)
    if job.config.examples is not None:
        _write(job.config.examples, job.seed, workdir / "examples.jsonl", raw_items, progress, unique=False)
    settings = json.dumps(job.config.settings, sort_keys=True, indent=1)
    (workdir / "task.json").write_text(settings + "\n", encoding="utf-8")


ACQUIRING = (acquire_model, acquire_file, acquire_rows, acquire_documents, acquire_text, acquire_task)
"""The stages that bring something here from outside."""


def _write(
    data: AcquireData,
    seed: int,
    path: Path,
    items_of: Callable[..., Iterator[Item]],
    progress: Progress,
    *,
    unique: bool,
    counts: Counts | None = None,
) -> None:
    sources, counts = data.sources, counts or Counts()
    rows = 0

    def found() -> Iterator[dict[str, Any]]:
        nonlocal rows
        # A row that two sources share counts for the first.
        seen = Seen(counts)
        for index, (source, pinned) in enumerate(sources):
            progress(index, len(sources), "sources")
            with private_folder(data.context.home / "tmp") as scratch:
                files = fetch(pinned, data.context, scratch)
                items = items_of(source, pinned.label, files)
                for item in taken(items, source, seed, unique, counts):
                    if not (unique and len(sources) > 1 and seen(item)):
                        rows += 1
                        yield item.row

    write_jsonl(path, found())
    if counts.bad:
        logger.warning("%d rows were skipped by on_bad_row; the first: %s", counts.bad, counts.first_bad)
    if unique:
        metrics = {"rows": rows, "repeated_rows": counts.repeated, "bad_rows": counts.bad}
        (path.parent / "metrics.json").write_text(
            json.dumps(metrics, sort_keys=True) + "\n", encoding="utf-8"
        )
    progress(len(sources), len(sources), "sources")
