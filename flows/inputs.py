"""The inputs of a run by name: all models and data, and the sources that they come from.

A source is resolved before anything runs: an alias, branch or path becomes a digest or a version. Another
model for a stage is an entry in `MODELS`, another source of data one in `DATA`, and a line in what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, Fault, ResproutError, faults_in
from resprout.configs.load import Loaded
from resprout.configs.schema import SOURCE_FILE as JUDGED_FILE
from resprout.configs.schema import DataSource, ModelConfig, RunConfig
from resprout.infra.licences import Credit
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.acquire.choose import MLFLOW_PARTS, choose
from resprout.tasks.acquire.jobs import AcquireData, AcquireModel, AcquireTask, wanted_of
from resprout.tasks.acquire.model import require_sound
from resprout.tasks.acquire.source import Context, Wanted, locate, scheme_of
from resprout.tasks.acquire.stage import (
    acquire_documents,
    acquire_file,
    acquire_model,
    acquire_rows,
    acquire_task,
    acquire_text,
)
from resprout.tasks.core.stage import Stage
from resprout.tasks.evaluate.task_files import TASK_ROLE, read_task, task_code
from resprout.tasks.models.gguf_header import gguf_shape, refuse_cut
from resprout.tasks.models.shape import Shape, read_config, shape_of
from resprout.tasks.models.tokenizer_files import NO_TOKENIZER, has_tokenizer
from resprout.tasks.prune.compatibility import needs_general
from resprout.tasks.quantize.names import SOURCE_FILE

TOKENIZER = "tokenizer.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
SOURCE, TASKS = "source", "tasks"
"""Name of the source model among a run's artifacts, and of the group of its tasks' data."""


@dataclass(frozen=True)
class ModelInput:
    """A model that a run config may name.

    Stages read it as `name`. Its address stands at `key`, whose last part is `source` or ends with `_source`.
    `role` is what steps and lineage call it ("acquire encoder"), `credit` what licences and the model card
    do. `config` makes its section, None where a run needs no such model. Of a `decoder` the shape is known.
    """

    name: str
    role: str
    key: str
    credit: str
    config: Callable[[RunConfig], ModelConfig | None]
    decoder: bool = True


def _encoder(config: RunConfig) -> ModelConfig | None:
    """The sentence encoder that the selection loads."""
    arms = config.select.arms.values() if config.select is not None else ()
    wanted = (one.paser for one in arms if one.method == "paser" and one.paser.embedder == "minilm")
    source = next((one.embedder_source for one in wanted), None)
    return None if source is None else ModelConfig(source=source)


MODELS = (
    ModelInput(SOURCE, "model", "model.source", "source model", lambda config: config.model),
    ModelInput("encoder", "encoder", "select.paser.embedder_source", "encoder", _encoder, decoder=False),
)


@dataclass(frozen=True)
class DataInput:
    """Data that a run config may name.

    Stages read it as `name`. Its sources stand at `key`, and `stage` brings them here where `read` says so.
    `role` is what steps and lineage call it ("acquire pool"), `credit` what licences do, and the model card
    where the data `shapes` the model.
    """

    name: str
    stage: Stage[Any]
    role: str
    key: str
    credit: str
    read: Callable[[RunConfig], bool] = lambda config: True
    shapes: bool = True

    def sources(self, config: RunConfig) -> Sequence[DataSource]:
        """Its sources in the config; none where a section is absent."""
        found: Any = config
        for part in self.key.split("."):
            found = getattr(found, part, ())
        return found or ()


DATA = (
    DataInput("calibration_text", acquire_text, "calibration text", "calibrate.text", "calibration text"),
    DataInput(
        "general_text",
        acquire_text,
        "general text",
        "prune.general",
        "general text",
        lambda config: needs_general(config.prune),
    ),
    DataInput(
        "text",
        acquire_text,
        "evaluation text",
        "evaluate.perplexity.text",
        "evaluation text",
        shapes=False,
    ),
    DataInput("rows", acquire_rows, "pool", "select.pool", "recovery rows"),
    DataInput("documents", acquire_documents, "documents", "select.documents", "documents"),
    DataInput(
        "target_rows",
        acquire_rows,
        "capabilities",
        "select.capabilities.rows",
        "rows like what it is for",
        lambda config: config.select is not None and config.select.capabilities is not None,
        shapes=False,
    ),
    DataInput("recovery_text", acquire_text, "recovery text", "recover.text", "recovery text"),
)


SHAPING = {one.credit for one in MODELS} | {one.credit for one in DATA if one.shapes}
"""Credits that the model card names: evaluation data changes none of the model's bytes."""


@dataclass(frozen=True)
class Acquisition:
    """One call of an acquire stage: the `name` of what it brings, in a `group` where there are several."""

    name: str
    stage: Stage[Any]
    role: str
    group: str = ""


def acquisitions(config: RunConfig) -> Iterator[Acquisition]:
    """All that a run of this config begins with, in the order in which it is brought here."""
    for data in DATA:
        if data.sources(config) and data.read(config):
            yield Acquisition(data.name, data.stage, data.role)
    for one in config.evaluate.tasks.values():
        yield Acquisition(f"{TASK_ROLE}{one.name}", acquire_task, f"task {one.name}", TASKS)
    for model in MODELS:
        if model.config(config) is not None:
            yield Acquisition(model.name, acquire_model, model.role)
    if keeps_file(config):
        yield Acquisition(SOURCE_FILE, acquire_file, SOURCE_FILE)


def require_source_file(loaded: Loaded) -> None:
    """BadInput where the file that a run began with is to be compared, and the source here is a folder."""
    source = loaded.config.model.source
    found = locate(source, context(loaded)) if keeps_file(loaded.config) else None
    if found is not None and (found / "config.json").is_file():
        raise BadInput(f"source_file is the GGUF file that a run begins with, but {source} is none; drop it")


def keeps_file(config: RunConfig) -> bool:
    """Whether the source's own file is judged too."""
    return config.compare is not None and JUDGED_FILE in config.compare.baselines


class Sources:
    """The sections of the acquire stages by the name of what they bring, every source resolved.

    Making them resolves the sources, so that a bad one fails first. `credits` are all that the model is made
    from or judged by, with the licences that config or files name.
    """

    def __init__(self, loaded: Loaded, tracking_uri: str) -> None:
        config = loaded.config
        here = context(loaded, tracking_uri)
        self.sections: dict[str, Any] = {}
        credits: list[Credit] = []
        for model in MODELS:
            if (section := model.config(config)) is not None:
                self.sections[model.name] = pinned = AcquireModel.pin(section, here, model.role)
                credits += pinned.credits(model.credit)
        self.model: AcquireModel = self.sections[SOURCE]
        if keeps_file(config):
            self.sections[SOURCE_FILE] = self.model
        for data in DATA:
            if (sources := data.sources(config)) and data.read(config):
                self.sections[data.name] = found = AcquireData.pin(sources, here)
                credits += found.credits(data.credit)
        for one in sorted(config.evaluate.tasks.values(), key=lambda task: task.name):
            rows = AcquireData.pin((one.data,), here)
            shown = None if one.examples is None else AcquireData.pin((one.examples,), here)
            settings = read_task(one.task, loaded.base, config.evaluate.trust_task_code)
            code = task_code(one.task, loaded.base)
            made = AcquireTask(rows, settings, shown, None if code is None else code._asdict())
            self.sections[f"{TASK_ROLE}{one.name}"] = made
            credits += made.whole.credits(f"task {one.name}")
        self.credits = tuple(credits)
        self.shapes = shapes_here(loaded)
        self.shape = self.shapes.get(SOURCE)


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
    here = context(loaded)
    return [
        fault
        for name, address, wanted in named_sources(loaded.config)
        for fault in faults_in(name, partial(find, address, wanted, here))
    ]


def find(address: str, wanted: Wanted, here: Context) -> Path | None:
    """The place of a source on this machine, None where it is elsewhere.

    Raises:
        BadInput: it is not there, or is no sound model with a tokenizer where one is wanted.
    """
    try:
        found = locate(address, here)
        if found is not None and wanted.purpose != "data":
            files = model_files(address, found, wanted)
            if not next(iter(files)).endswith(".gguf") and not has_tokenizer(files):
                raise BadInput(f"{address} {NO_TOKENIZER}")
            for name, path in files.items():
                require_sound(name, path)
        return found
    except ResproutError as error:
        hint = _hub_name(address, here.base) if wanted.purpose == "model" else ""
        raise BadInput(f"{error}{hint}") from None


def model_files(address: str, place: Path, wanted: Wanted) -> dict[str, Path]:
    """The files of the model at a local place, by their names in a model folder; reads none of them.

    Raises:
        BadInput: what is there, which the config calls `address`, is no model.
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


def _hub_name(address: str, base: Path) -> str:
    """A question, where the path that is not there looks like the name of a model on the hub."""
    organisation = address.partition("/")[0]
    is_name = HUB_NAME.fullmatch(address) and not (base / organisation).exists()
    return f"; did you mean hf://{address}?" if is_name else ""


def decoders(config: RunConfig) -> dict[str, ModelConfig]:
    """By name the sections of the models whose shape is known."""
    named = {one.name: one.config(config) for one in MODELS if one.decoder}
    return {name: section for name, section in named.items() if section is not None}


def shapes_here(loaded: Loaded) -> dict[str, Shape]:
    """By name the shapes of the models whose headers lie on this machine; reads no weights."""
    found = {name: _shape(section.source, loaded) for name, section in decoders(loaded.config).items()}
    return {name: shape for name, shape in found.items() if shape is not None}


def tokenizer_here(loaded: Loaded) -> dict[str, Any] | None:
    """The object of the source model's tokenizer.json; None where none lies on this machine."""
    found = locate(loaded.config.model.source, context(loaded))
    if found is None or not (found / TOKENIZER).is_file():
        return None
    return read_tokenizer((found / TOKENIZER).read_bytes(), loaded.config.model.source)


def read_tokenizer(content: bytes, place: str) -> dict[str, Any]:
    """The object of a tokenizer.json; BadInput, which names `place`, where it is none."""
    try:
        found = parse_json(content, place)
        if isinstance(found["model"]["vocab"], dict | list):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{place}/{TOKENIZER} is no tokenizer; write the model's tokenizer again")


def _shape(source: str, loaded: Loaded) -> Shape | None:
    found = locate(source, context(loaded))
    if found is None:
        return None
    if (found / "config.json").is_file():
        return shape_of(read_config(found, source))
    files = [found] if found.suffix == ".gguf" else sorted(found.glob("*.gguf"))
    if len(files) != 1 or not files[0].is_file():
        return None
    refuse_cut(files[0])
    return gguf_shape(files[0])


def named_sources(config: RunConfig) -> Iterator[tuple[str, str, Wanted]]:
    """Key, address and kind of each source that the config names."""
    for model in MODELS:
        if (section := model.config(config)) is not None:
            yield model.key, section.source, wanted_of(section, model.role)
    for name, source in data_sources(config):
        yield f"{name}.source", source.source, Wanted("data")


def is_elsewhere(address: str) -> bool:
    """Whether a source has to be asked for by a network or a registry."""
    try:
        return scheme_of(address) not in ("local", "package")
    except BadInput:
        return False


def data_sources(config: RunConfig) -> Iterator[tuple[str, DataSource]]:
    """Key and section of each source of data."""
    for data in DATA:
        for index, source in enumerate(data.sources(config)):
            yield f"{data.key}.{index}", source
    for place, task in config.evaluate.tasks.items():
        yield f"evaluate.{place}.data", task.data
        if task.examples is not None:
            yield f"evaluate.{place}.examples", task.examples
