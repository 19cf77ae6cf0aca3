"""Stages `acquire_*`: a model as a safetensors folder, data as JSONL, from sources pinned before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    files_of,
    instruction_items,
    is_about_data,
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

MOST_SHOWN = 10
"""Names of files that a line of the log has; the artifact has all."""


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
    """Write `rows.jsonl`: {"id", "instruction", "input", "output", "category", "source", "file", "row"}.

    Each id is there once. `file` is the file of its source that a row is from, `row` its number in that, of
    JSONL, CSV and text its line. Beside it, as of all data, `rows.sources.json`: files that were read of each
    source and that were passed over, and rows that were bad.
    """
    _write(job.config, job.seed, workdir / "rows.jsonl", instruction_items, progress)


@stage(
    "acquire_documents", kind="documents", title="acquire", seeded=True, computes=False, brings="Documents"
)
def acquire_documents(
    job: Job[AcquireData], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `documents.jsonl`: {"id", "name", "markup", "text", "source"}; each text once."""
    _write(job.config, job.seed, workdir / "documents.jsonl", document_items, progress)


@stage("acquire_text", kind="text", title="acquire", seeded=True, computes=False, brings="Running text")
def acquire_text(
    job: Job[AcquireData], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `text.jsonl`: {"text", "source"}; each text once."""
    _write(job.config, job.seed, workdir / "text.jsonl", text_items, progress)


@stage("acquire_task", kind="task-data", title="acquire", seeded=True, computes=False, brings="Task data")
def acquire_task(
    job: Job[AcquireTask], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write `rows.jsonl` with the columns that the data has, and the lm-eval task's settings as `task.json`.

    Solved examples are `examples.jsonl`. Repeated rows stay, as a benchmark counts them.
    """
    for data, name in ((job.config.data, "rows.jsonl"), (job.config.examples, "examples.jsonl")):
        if data is not None:
            _write(data, job.seed, workdir / name, raw_items, progress, unique=False)
    _write_json(workdir / "task.json", dict(job.config.settings))


ACQUIRING = (acquire_model, acquire_file, acquire_rows, acquire_documents, acquire_text, acquire_task)
"""The stages that bring something here from outside."""


def _write(
    data: AcquireData,
    seed: int,
    path: Path,
    items_of: Callable[..., Iterator[Item]],
    progress: Progress,
    *,
    unique: bool = True,
) -> None:
    sources, shared = data.sources, Counts()
    counted, rows = [Counts() for _ in sources], 0
    about = list[dict[str, Any]]()

    def found() -> Iterator[dict[str, Any]]:
        nonlocal rows
        # A row that two sources share counts for the first.
        seen = Seen(shared)
        for index, ((source, pinned), counts) in enumerate(zip(sources, counted, strict=True)):
            progress(index, len(sources), "sources")
            with private_folder(data.context.home / "tmp") as scratch:
                files = fetch(pinned, data.context, scratch)
                about.append(_files(pinned.label, *files_of(source, files)))
                items = items_of(source, pinned.label, files, counts=counts)
                for item in taken(items, source, seed, unique, counts):
                    if not (unique and len(sources) > 1 and seen(item)):
                        rows += 1
                        yield item.row

    write_jsonl(path, found())
    for one, counts in zip(about, counted, strict=True):
        if counts.bad:
            logger.warning("%s: %s", one["source"], counts.said)
        one["bad_rows"] = counts.bad
        one["first_bad_rows"] = [{"file": bad.file, "row": bad.number} for bad in counts.first_bad]
    _write_json(path.with_suffix(".sources.json"), about)
    if unique:
        repeated = sum(counts.repeated for counts in (shared, *counted))
        bad = sum(counts.bad for counts in counted)
        metrics = {"rows": rows, "repeated_rows": repeated, "bad_rows": bad}
        _write_json(path.parent / "metrics.json", metrics)
    progress(len(sources), len(sources), "sources")


def _files(label: str, read: Sequence[str], passed_over: Sequence[str]) -> dict[str, Any]:
    """Files of a source that are read and passed over, for the artifact; of a folder logged too."""
    if len(read) > 1 or passed_over:
        unknown = [name for name in passed_over if not is_about_data(name)]
        level = logging.WARNING if unknown else logging.INFO
        logger.log(level, "%s: read %s; passed over %s", label, _shown(read), _shown(passed_over))
    return {"source": label, "read": list(read), "passed_over": list(passed_over)}


def _shown(names: Sequence[str]) -> str:
    more = f", ... ({len(names):,} files)" if len(names) > MOST_SHOWN else ""
    return f"{', '.join(names[:MOST_SHOWN])}{more}" if names else "none"


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, sort_keys=True, indent=1) + "\n", encoding="utf-8")
