"""Result of a run, which `resprout run --json` prints as its last line."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from resprout.configs.errors import BadInput, ResproutError, Terminated


class Plain(BaseModel):
    """Base of the result's parts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ArtifactResult(Plain):
    """A stage's artifact."""

    kind: str
    digest: str
    """sha256 over the sorted (path, size, sha256) of its files."""
    uri: str


class StageResult(Plain):
    """One call of a stage in the run."""

    name: str
    """Name for people: the stage, and which call of it this is."""
    stage: str
    role: str
    """Names the call where a run calls the stage more than once."""
    cached: bool
    seconds: float
    """Wall time of the stage's own work; of the look-up where cached."""
    cpu_seconds: float | None = None
    """Processor seconds of the whole process meanwhile; null where cached."""
    peak_memory_bytes: int | None = None
    """The process's largest resident set meanwhile, on CUDA the most that tensors held; null where cached, or
    where the system does not say."""
    artifact: ArtifactResult


class SpeedResult(Plain):
    """A speed relative to the dense model's, both measured in the same rounds."""

    ratio: float
    """Median over the rounds of this model's speed / the dense model's."""
    low: float
    """Ends of the interval of the median, of 95 % from 6 rounds (`measure.repeats`) on."""
    high: float
    different: bool
    """Whether the interval leaves out 1; else the noise is larger than the difference."""


class LossResult(Plain):
    """What a model lost of one capability against the dense one, on the same items."""

    tasks: list[str]
    items: int
    dense: float
    """Share of the items that the dense model answered right; of other metrics their mean."""
    model: float
    """The same of this model."""
    drop: float
    low: float
    """Ends of the interval of the drop, of 95 %."""
    high: float
    lost: int
    """Items on which only the dense model is right, or is better."""
    won: int
    p: float
    """McNemar's exact test: how often chance alone would be as uneven."""
    cut: float | None = None
    """Share of this model's written answers that were cut; null of chosen ones."""
    dense_cut: float | None = None


class ModelResult(Plain):
    """Size and metrics of one model."""

    params: int
    """Unique parameters, a tied tensor once."""
    non_embedding_params: int
    bytes: int
    """Bytes of the weights in the export's dtype."""
    metrics: dict[str, float]
    speeds: dict[str, SpeedResult] = {}
    """By the name of each speed among the metrics its ratio to the dense model's; empty of the dense one."""
    losses: dict[str, LossResult] = {}
    """By capability what was lost; empty of the dense one, and without tasks."""


class GateCheck(Plain):
    """One bound of the gate."""

    name: str
    value: float
    """The measured value; of a drop with a margin the upper end of its interval."""
    bound: float
    passed: bool
    items: int | None = None
    """Of a drop the number of items that both models answered."""
    note: str = ""
    """Of a drop what lies behind the value."""
    shown: str = ""
    """Of a drop with a margin what the items show: the value is no measured one."""

    @property
    def text(self) -> str:
        """The value and the bound for people."""
        return (
            f"{self.name}: {self.shown}"
            if self.shown
            else f"{self.name} {self.value:.4f} (bound {self.bound:g})"
        )


class GateResult(Plain):
    """The gate's verdict; no checks where the config has no gate."""

    passed: bool
    checks: list[GateCheck]


class ExportResult(Plain):
    """One exported format."""

    format: str
    uri: str
    path: str | None = None
    """Short way to the folder on this machine, <home>/models/<name>/<version>; null where the store is no
    folder."""
    bytes: int
    verified: bool
    """A clean process with the stock tool computed what the model does, within the format's tolerance."""
    max_abs_logit_diff: float | None = None
    """Largest difference of a logit, of formats that keep every weight."""
    mean_kl_nats: float | None = None
    """Mean KL(model || file) on the prompts, of formats of few bits."""


class ShippedResult(Plain):
    """The file that ships beside the one that came in, in bytes of weights."""

    format: str
    bytes: float
    source_format: str
    source_bytes: float


class VerdictResult(Plain):
    """The verdict on a run, as the report begins with it."""

    sentence: str
    judgement: str
    """Whether it is worth it, which ends the sentence."""
    tone: str
    """good, bad or even."""


class RegisteredResult(Plain):
    """The model version."""

    name: str
    version: str
    alias: str | None


class PushResult(Plain):
    """The export on a model hub."""

    to: str
    """hf://org/name@commit."""
    url: str
    changed: bool
    """Whether a commit was made; else the repository held these files already."""


class Overhead(Plain):
    """Wall time outside the stages' own work."""

    orchestration_seconds: float
    waiting_seconds: float = 0.0
    """For another run that computed the same."""
    imports_seconds: float
    server_start_seconds: float


class RunResult(Plain):
    """Outcome of a run; parts that were not reached are null or empty."""

    status: Literal["done", "gate_not_passed", "failed", "bad_input", "cancelled", "stopped"]
    """`stopped`: a search ended the run, as its pruned model was dominated by another's."""
    exit_code: int
    message: str = ""
    """The error's sentence where the run did not end well; else what the licence policy warns of."""
    mlflow_run_id: str | None = None
    config_digest: str | None = None
    stages: list[StageResult] = []
    method: str | None = None
    """Name of the pruning method in force; where not all of it is the paper's it says so."""
    warnings: list[str] = []
    """Warnings of the plan: a target that rounding missed, or one that leaves too little of each layer."""
    models: dict[str, ModelResult | None] | None = None
    """The models by name, in the order in which they are made; null where the config has no such section."""
    files: dict[str, ModelResult] = {}
    """Files of few bits by format, with those of the dense model that they are compared with."""
    against_fewer_bits: list[str] = []
    """Sentences on whether the dense model in fewer bits is better than each file of the pruned model."""
    selection: str = ""
    """How the rows were chosen that recovery trained on; empty without `select`."""
    selections: list[str] = []
    """Sentences on which of the compared selections won; empty without `select.compare`."""
    draft: dict[str, float] = {}
    """Assisted generation with the last model as draft: acceptance rate and speeds; empty without `draft`."""
    gate: GateResult | None = None
    exports: list[ExportResult] = []
    ships: ShippedResult | None = None
    verdict: VerdictResult | None = None
    registered: RegisteredResult | None = None
    pushed: PushResult | None = None
    sealed: bool = False
    """Everything that the run left behind is stated in its seal, for `resprout verify`."""
    signed_by: str | None = None
    """Id of the key that signed seal and records; null: they are unsigned."""
    report: str | None = None
    """Path of the HTML report."""
    seconds: float = 0.0
    overhead: Overhead | None = None

    def made_models(self) -> dict[str, ModelResult]:
        """The models that there are, by name."""
        return {name: one for name, one in (self.models or {}).items() if one is not None}

    def fail(self, error: BaseException) -> None:
        """Say that and why the run did not get through."""
        if isinstance(error, KeyboardInterrupt):
            self.status, self.message = "cancelled", "cancelled"
            self.exit_code = error.exit_code if isinstance(error, Terminated) else 130
        elif isinstance(error, ResproutError):
            self.status = "bad_input" if isinstance(error, BadInput) else "failed"
            self.exit_code, self.message = error.exit_code, str(error)
        else:
            self.status, self.exit_code = "failed", 1
            self.message = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
