"""The sources of a run, pinned before it runs: alias, branch or path become a digest or a version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from resprout.configs.errors import BadInput, ResproutError
from resprout.configs.load import Loaded
from resprout.configs.schema import DataSource, ModelConfig, RunConfig
from resprout.flows.faults import Fault
from resprout.infra.licences import Credit
from resprout.tasks.acquire.address import locate, scheme_of
from resprout.tasks.acquire.choose import MLFLOW_PARTS, choose
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel, AcquireTask
from resprout.tasks.acquire.pinned import Context, Wanted
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.gguf_header import gguf_shape
from resprout.tasks.models.shape import Shape, read_config, shape_of
from resprout.tasks.models.tokenizer_files import NO_TOKENIZER, has_tokenizer
from resprout.tasks.prune.compatibility import needs_general

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


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


def missing(loaded: Loaded) -> list[Fault]:
    """Key and sentence for each source on this machine that is not there, or is no model with a tokenizer.

    Sources elsewhere are not asked.
    """
    here, faults = context(loaded), []
    for name, address, wanted in named_sources(loaded.config):
        try:
            found = locate(address, here)
            if found is not None and wanted.purpose != "data":
                files = model_files(address, found, wanted)
                if not next(iter(files)).endswith(".gguf") and not has_tokenizer(files):
                    raise BadInput(f"{address} {NO_TOKENIZER}")
        except ResproutError as error:
            hint = _hub_name(address, loaded) if name == "model.source" else ""
            faults.append((name, f"{error}{hint}"))
    return faults


def model_files(address: str, place: Path, wanted: Wanted) -> dict[str, Path]:
    """The files of the model at a local place, by their names in a model folder; reads none of them.

    Raises:
        BadInput: what lies there, which the config calls `address`, is no model.
    """
    if place.is_file():
        found = {place.name: place}
    else:
        # Folders below count in MLflow's layout only, and a wrong path may hold millions of files.
        folders = [place, *(place / part for part in MLFLOW_PARTS if (place / "MLmodel").is_file())]
        files = [one for folder in folders if folder.is_dir() for one in folder.iterdir() if one.is_file()]
        found = {one.relative_to(place).as_posix(): one for one in files}
    chosen = choose(found, wanted, address)
    return {name: found[at] for name, at in chosen.files.items()}


def _hub_name(address: str, loaded: Loaded) -> str:
    """A question, where the path that is not there looks like the name of a model on the hub."""
    organisation = address.partition("/")[0]
    is_name = HUB_NAME.fullmatch(address) and not (loaded.base / organisation).exists()
    return f"; did you mean hf://{address}?" if is_name else ""


def source_shape(loaded: Loaded) -> Shape | None:
    """The source model's shape where its header lies on this machine, else None; reads no weights."""
    found = locate(loaded.config.model.source, context(loaded))
    if found is None:
        return None
    if found.is_file() and found.suffix == ".gguf":
        return gguf_shape(found)
    if (found / "config.json").is_file():
        return shape_of(read_config(found, loaded.config.model.source))
    files = sorted(found.glob("*.gguf")) if found.is_dir() else []
    return gguf_shape(files[0]) if len(files) == 1 else None


def named_sources(config: RunConfig) -> Iterator[tuple[str, str, Wanted]]:
    """Key, address and kind of each source that the config names."""
    model = config.model
    yield "model.source", model.source, Wanted("model", model.allow_pickle, model.trust_remote_code)
    for name, source in data_sources(config):
        yield f"{name}.source", source.source, Wanted("data")
    encoder = _encoder(config)
    if encoder is not None:
        yield "select.paser.embedder_source", encoder, Wanted("encoder")


def is_elsewhere(address: str) -> bool:
    """Whether a source has to be asked for by a network or a registry."""
    try:
        return scheme_of(address) not in ("local", "package")
    except BadInput:
        return False


def data_sources(config: RunConfig) -> Iterator[tuple[str, DataSource]]:
    """Key and section of each source of data."""
    texts = {
        "calibrate.text": config.calibrate.text,
        "prune.general": config.prune.general,
        "evaluate.perplexity.text": config.evaluate.perplexity.text,
        "select.pool": config.select.pool if config.select else (),
    }
    for key, sources in texts.items():
        for index, source in enumerate(sources):
            yield f"{key}.{index}", source
    for index, task in enumerate(config.evaluate.zero_shot.tasks if config.evaluate.zero_shot else ()):
        yield f"evaluate.zero_shot.tasks.{index}.data", task.data
