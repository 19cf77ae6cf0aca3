"""The sources of a run, pinned before anything runs: an alias, a branch or a path becomes a digest or a
version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resprout.configs.errors import ResproutError
from resprout.configs.load import Loaded
from resprout.configs.schema import DataSource, ModelConfig, ZeroShotTask
from resprout.infra.tracking import Tracker
from resprout.tasks.acquire.address import locate
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel
from resprout.tasks.acquire.pinned import Context
from resprout.tasks.models.gguf_header import gguf_shape
from resprout.tasks.models.size import Shape, shape_of


class Sources:
    """Jobs of the acquire stages; making one resolves every source of the config, data first fails first."""

    def __init__(self, loaded: Loaded, tracker: Tracker) -> None:
        config = loaded.config
        self.context = context(loaded, tracker.uri)
        self.model = AcquireModel.pin(config.model, self.context)
        self.shape = source_shape(loaded)
        paser = config.select.paser if config.select and config.select.method == "paser" else None
        source = paser.embedder_source if paser and paser.embedder == "minilm" else None
        self.embedder = (
            AcquireModel.pin(ModelConfig(source=source), self.context, role="encoder") if source else None
        )

    def data(self, sources: Sequence[DataSource]) -> AcquireData:
        """The job that brings these sources here as one artifact."""
        return AcquireData.pin(sources, self.context)

    def task(self, task: ZeroShotTask) -> AcquireData:
        """The job that brings a zero-shot task's rows here."""
        return self.data((task.data,))


def context(loaded: Loaded, tracking_uri: str | None = None) -> Context:
    """Where a run's sources are looked for: beside its config, in installed packages, and in
    <home>/packages.
    """
    return Context(
        home=loaded.home,
        base=loaded.base,
        package_roots=(loaded.home / "packages",),
        store=loaded.config.infra.store,
        tracking_uri=tracking_uri,
    )


def missing(loaded: Loaded) -> list[str]:
    """A sentence for each source on this machine that is not there; sources elsewhere are not asked."""
    here = context(loaded)
    faults = []
    for name, source in _named_sources(loaded):
        try:
            locate(source, here)
        except ResproutError as error:
            faults.append(f"{name}: {error}")
    return faults


def source_shape(loaded: Loaded) -> Shape | None:
    """The source model's shape where its header lies on this machine, else None; reads no weights."""
    found = locate(loaded.config.model.source, context(loaded))
    if found is None:
        return None
    if found.is_file() and found.suffix == ".gguf":
        return gguf_shape(found)
    if (found / "config.json").is_file():
        return shape_of(found)
    files = sorted(found.glob("*.gguf")) if found.is_dir() else []
    return gguf_shape(files[0]) if len(files) == 1 else None


def _named_sources(loaded: Loaded) -> Iterator[tuple[str, str]]:
    config = loaded.config
    yield "model.source", config.model.source
    for index, text in enumerate(config.calibrate.text):
        yield f"calibrate.text.{index}.source", text.source
    for index, text in enumerate(config.evaluate.perplexity.text):
        yield f"evaluate.perplexity.text.{index}.source", text.source
    if config.evaluate.zero_shot is not None:
        for index, task in enumerate(config.evaluate.zero_shot.tasks):
            yield f"evaluate.zero_shot.tasks.{index}.data.source", task.data.source
    if config.select is not None:
        for index, rows in enumerate(config.select.pool):
            yield f"select.pool.{index}.source", rows.source
        if config.select.method == "paser" and config.select.paser.embedder == "minilm":
            yield "select.paser.embedder_source", config.select.paser.embedder_source or ""
