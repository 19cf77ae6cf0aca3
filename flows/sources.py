"""The sources of a run, pinned before it runs: alias, branch or path become a digest or a version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resprout.configs.errors import ResproutError
from resprout.configs.load import Loaded
from resprout.configs.schema import DataSource, ModelConfig, RunConfig
from resprout.infra.licences import Credit
from resprout.tasks.acquire.address import locate
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel, AcquireTask
from resprout.tasks.acquire.pinned import Context
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.gguf_header import gguf_shape
from resprout.tasks.models.size import Shape, shape_of
from resprout.tasks.prune.resolve import needs_general


class Sources:
    """Jobs of the acquire stages; making them resolves every source, so that a bad one fails first."""

    def __init__(self, loaded: Loaded, tracking_uri: str) -> None:
        config = loaded.config
        here = context(loaded, tracking_uri)

        def data(sources: Sequence[DataSource]) -> AcquireData | None:
            return AcquireData.pin(sources, here) if sources else None

        self.texts = {
            "calibration": data(config.calibrate.text),
            "general": data(config.prune.general if needs_general(config.prune) else ()),
            "evaluation": data(config.evaluate.perplexity.text),
        }
        zero_shot = config.evaluate.zero_shot
        self.tasks = {
            one.name: AcquireTask(AcquireData.pin((one.data,), here), read_task(one.task, loaded.base))
            for one in (zero_shot.tasks if zero_shot else ())
        }
        self.pool = data(config.select.pool if config.select else ())
        self.model = AcquireModel.pin(config.model, here)
        encoder = _encoder(config)
        self.encoder = (
            AcquireModel.pin(ModelConfig(source=encoder), here, role="encoder") if encoder else None
        )
        self.shape = source_shape(loaded)
        self.credits = self._credits()

    def _credits(self) -> tuple[Credit, ...]:
        """All that the model is made from or judged by, with the licences that config or files name."""
        found = [*self.model.credits("source model")]
        if self.encoder is not None:
            found += self.encoder.credits("encoder")
        for what, text in self.texts.items():
            found += text.credits(f"{what} text") if text else ()
        found += self.pool.credits("recovery rows") if self.pool else ()
        for name, task in sorted(self.tasks.items()):
            found += task.data.credits(f"task {name}")
        return tuple(found)


def _encoder(config: RunConfig) -> str | None:
    """Source of the sentence encoder that the selection loads, None where it loads none."""
    if config.select is None or config.select.method != "paser" or config.select.paser.embedder != "minilm":
        return None
    return config.select.paser.embedder_source


def context(loaded: Loaded, tracking_uri: str | None = None) -> Context:
    """Where sources are looked for: beside the config, in installed packages, in <home>/packages."""
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
    for index, text in enumerate(config.prune.general):
        yield f"prune.general.{index}.source", text.source
    for index, text in enumerate(config.evaluate.perplexity.text):
        yield f"evaluate.perplexity.text.{index}.source", text.source
    if config.evaluate.zero_shot is not None:
        for index, task in enumerate(config.evaluate.zero_shot.tasks):
            yield f"evaluate.zero_shot.tasks.{index}.data.source", task.data.source
    if config.select is not None:
        for index, rows in enumerate(config.select.pool):
            yield f"select.pool.{index}.source", rows.source
    encoder = _encoder(config)
    if encoder is not None:
        yield "select.paser.embedder_source", encoder
