"""The declaration of a stage: all that flow, report and audit need to know of it, beside its function.

A stage is a pure function `(job, inputs, workdir, progress) -> None`, which writes files into `workdir`, and
what `@stage` says of it: its name and kind, the inputs that it reads by role, the section of the run config
that asks for it, what its cache key is made of, the model that it leaves, and what it gives to the other
stages, to MLflow, to the report and to the model card. No one else knows a stage by its name. How a stage is
run stands in `tasks.core.run`; of what its key consists, in `tasks.core.cache_key`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from resprout.infra import identity
from resprout.infra.store.record import ArtifactRef, stage_key
from resprout.tasks.core.cache_key import code_hash, file_hashes
from resprout.tasks.core.job import WHOLE, Job, Progress

C = TypeVar("C")
Body = Callable[[Job[C], Mapping[str, Path], Path, Progress], None]


@dataclass(frozen=True)
class Subfolder:
    """A folder inside an artifact, given to a stage as its input."""

    ref: ArtifactRef
    path: str


Input = ArtifactRef | Subfolder


def ref_of(given: Input) -> ArtifactRef:
    """The artifact of an input."""
    return given.ref if isinstance(given, Subfolder) else given


def config_data(config: Any) -> Any:
    """A section as plain data for key and record: its own `key_data()`, else its dump."""
    if hasattr(config, "key_data"):
        return config.key_data()
    if hasattr(config, "model_dump"):
        return config.model_dump(mode="json")
    return config


def always(config: Any) -> bool:
    """Whatever the config says."""
    return True


def nothing(config: Any) -> Any:
    """An empty mapping, whatever the config says."""
    return {}


def no_names(config: Any) -> tuple[str, ...]:
    """None, whatever the config says."""
    return ()


@dataclass(frozen=True)
class Reads:
    """One input of a stage, or with `group` one for each artifact of that group, by their names as roles.

    `of` is the name under which the run knows the artifact, the role itself by default. An `optional` input
    is left out where the run has none, every input where `where(section)` is false.
    """

    kind: Literal["model", "data", "scores", "plan"]
    of: str = ""
    optional: bool = False
    group: bool = False
    where: Callable[[Any], bool] = always


@dataclass(frozen=True)
class Model:
    """The model that a stage leaves: its `name` in result and report, its `folder` inside the artifact.

    With `metrics` the stage's own metrics count among the model's, beside its scores.
    """

    name: str
    folder: str = ""
    metrics: bool = False


class CardLine(NamedTuple):
    """A stage on the model card: the end of the sentence on how the model was made, and a tag for the hub."""

    text: str = ""
    tag: str = ""


def anything(config: Any, shapes: Mapping[str, Any]) -> None:
    """All models go with the section."""


BYTES_A_TOKEN = 4
"""Of a row's text, roughly: predicts time."""


class Volume(NamedTuple):
    """Sizes behind a call of a stage that are known before it runs; None where one is not known yet."""

    inputs: int
    calibration_tokens: float | None = None
    rows_bytes: int | None = None


def unknown(config: Mapping[str, Any], volume: Volume) -> float | None:
    """None: the time does not depend on data, or in no known way."""
    return None


def calibration_tokens(config: Mapping[str, Any], volume: Volume) -> float | None:
    """All tokens of calibration."""
    return volume.calibration_tokens


class StepId(NamedTuple):
    """One call of a stage in a run: `role` names the call where a run calls the stage more than once."""

    stage: str
    role: str = ""


class Runner(Protocol):
    """Runs stages: a `Run`."""

    def make(
        self, stage: Stage[Any], job: Job[Any], inputs: Mapping[str, Input], role: str = ""
    ) -> ArtifactRef:
        """The stage's artifact, found or made."""
        ...


@dataclass(frozen=True, eq=False)
class Declaration:
    """All that is declared of a stage. Its name and kind of artifact, and each with its use:"""

    name: str
    kind: str
    title: str = ""
    """Name that people read, where that is another."""
    section: str = ""
    """Key of the run config that the stage is given, and without which it is left out."""
    reads: Mapping[str, Reads] = field(default_factory=dict)
    """Its inputs by role."""
    gives: str = ""
    """Name under which later stages read its artifact, where that is not the stage's."""
    also_gives: Callable[[Any], tuple[str, ...]] = no_names
    """Further names under which later stages read its artifact then, in place of what had them before."""
    leaves: Model | None = None
    """The model that it makes, which is evaluated at once and is what later stages go on with."""
    weights: bool = False
    """Its artifact holds weights of at most the dense model's size, also in a call that leaves no model."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions enter the key."""
    methods: Callable[[Any], list[str]] = nothing
    """Modules of the methods that the section selects: the code behind them enters the key."""
    seeded: bool | Callable[[Any], bool] = False
    """It draws, or does by this section, so the seed enters the key."""
    computes: bool = True
    """Its bytes depend on dtype and device, which enter the key."""
    hardware: bool = False
    """It measures the machine, which enters the key."""
    starts: bool = False
    """It starts processes of its own, which load the libraries again."""
    resumes: bool = False
    """It keeps checkpoints as it goes (`job.checkpoints`), from which an interrupted call goes on."""
    tokens: Callable[[Mapping[str, Any], Volume], float | None] = unknown
    """Tokens that a call goes through, or what grows with them, by the config in its key; predicts time."""
    settings: Callable[[Any], Any] = config_data
    """The part of the section that enters the key, as plain data, where that is not all of it."""
    shard: Stage[Any] | None = None
    """The stage that makes one share of the work; its artifacts become inputs. It is given those of its
    `reads`, or where it declares none all that its stage is given."""
    splits: Callable[[Any], bool] = always
    """Whether work by this section can be shared out."""
    params: Callable[[Any], Mapping[str, Any]] = nothing
    """Settings by which people compare runs in MLflow."""
    metrics: tuple[str, ...] = ()
    """Names of its metrics that the whole run shows too."""
    reported: bool = False
    """The report reads its artifact."""
    tagged: bool = False
    """A registered version names its artifact in a tag."""
    brings: str = ""
    """Name of its data on MLflow's pages, for a stage that acquires some."""
    timed: bool = False
    """Its bytes show timings, which no two runs share; so they do where it measures the machine."""
    card: Callable[[Any], CardLine] | None = None
    """Its line of the model card."""
    lengths: Callable[[Any], Mapping[str, int]] = nothing
    """Sequence lengths that the model must take, by their keys."""
    checks: Mapping[str, Callable[[Any, Path], None]] = field(default_factory=dict)
    """By a key of the config a function of the section and the config's folder, which raises BadInput for
    what the schema cannot know."""
    fits: Callable[[Any, Mapping[str, Any]], None] = anything
    """A function of the section and the shapes of the run's models by name, which raises BadInput where they
    do not go together: `source`, `model` (what pruning leaves; absent where that depends on scores), and each
    other that is known. It is called before a run, and again when all models are here."""

    def __post_init__(self) -> None:
        if self.leaves is not None and self.leaves.metrics and not self.reported:
            raise ValueError(f"stage {self.name} leaves a model with metrics of its own; set reported=True")


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage(Declaration, Generic[C]):
    """A pure function and what is declared of it; `target` is where another process finds it."""

    body: Body[C]
    target: str

    @property
    def writes_model(self) -> bool:
        return self.weights or self.leaves is not None

    @property
    def shows_time(self) -> bool:
        return self.timed or self.hardware

    def draws(self, config: C) -> bool:
        """Whether the seed decides its bytes."""
        return self.seeded if isinstance(self.seeded, bool) else self.seeded(config)

    def label(self, role: str = "") -> str:
        """Name of a call for people: the title and the role."""
        return f"{self.title} {role}".rstrip()

    def key(self, job: Job[C], inputs: Mapping[str, Input]) -> str:
        """The cache key: sha256 of everything that decides the stage's bytes."""
        return self.key_of(self.key_parts(job, inputs))

    def key_of(self, parts: Mapping[str, Any]) -> str:
        """The key that these parts make."""
        return stage_key(parts)

    def key_parts(self, job: Job[C], inputs: Mapping[str, Input]) -> dict[str, Any]:
        """The parts of the key by name (see `tasks.core.cache_key`), readable, to explain a miss."""
        config = self.settings(job.config)
        if job.share != WHOLE:
            config = {"share": [job.share.index, job.share.count], **config}
        parts: dict[str, Any] = {
            "stage": self.name,
            "config": config,
            "parents": {
                role: [ref_of(given).digest, given.path if isinstance(given, Subfolder) else ""]
                for role, given in sorted(inputs.items())
            },
            "libraries": {name: identity.library_version(name) for name in self.libraries},
            "code": code_hash(self._code(job.config)),
        }
        if self.draws(job.config):
            parts["seed"] = job.seed
        if self.computes:
            parts["dtype"], parts["device"] = job.dtype, job.device
        if self.hardware:
            from resprout.tasks.core.hardware import fingerprint

            parts["hardware"] = fingerprint()
            if job.max_memory is not None:
                # Bytes are the same wherever layers lie; times are not.
                parts["max_memory"] = dict(job.max_memory)
        return parts

    def code_files(self, config: C) -> dict[str, str]:
        """A short hash of each file behind the code in the key, by its path in the project."""
        return file_hashes(self._code(config))

    def _code(self, config: C) -> list[str]:
        """What the stage's code is reached from: its function, and the modules of the selected methods."""
        return [f"{self.body.__module__}:{self.body.__name__}", *self.methods(config)]

    def __call__(
        self, run: Runner, job: Job[C], inputs: Mapping[str, Input] | None = None, role: str = ""
    ) -> ArtifactRef:
        """The stage's artifact, found or made."""
        return run.make(self, job, inputs or {}, role)


class stage(Declaration):
    """Turn a pure function into a stage: `@stage("prune", kind="model", ...)`."""

    def __call__(self, body: Body[C]) -> Stage[C]:
        named = {"title": self.title or self.name, "gives": self.gives or self.name}
        target = f"{body.__module__}:{body.__qualname__}"
        return Stage(**{**vars(self), **named}, body=body, target=target)
