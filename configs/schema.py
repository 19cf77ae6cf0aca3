"""The one model of a whole run; strict, frozen, with the unit of each quantity in its name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from resprout.configs.infrastructure import (
    SECRETS,
    InfraConfig,
    LicencesConfig,
    MlflowConfig,
    PrefectConfig,
    ProofConfig,
    RelayConfig,
    RetentionConfig,
    StackConfig,
    StoreConfig,
    without_credentials,
)
from resprout.configs.prune import PruneConfig
from resprout.configs.section import Name, Section
from resprout.configs.sources import DataSource, ModelConfig, RowSource, TextSource
from resprout.configs.stages import (
    CalibrateConfig,
    EvaluateConfig,
    ExportConfig,
    GateConfig,
    MeasureConfig,
    PaserConfig,
    PerplexityConfig,
    RecoverConfig,
    RegisterConfig,
    SelectConfig,
    SparsifyConfig,
    ZeroShotConfig,
    ZeroShotTask,
)
from resprout.configs.target import TargetConfig

__all__ = [
    "CalibrateConfig",
    "DataSource",
    "EvaluateConfig",
    "ExportConfig",
    "GateConfig",
    "InfraConfig",
    "LicencesConfig",
    "MeasureConfig",
    "MlflowConfig",
    "ModelConfig",
    "PaserConfig",
    "PerplexityConfig",
    "PrefectConfig",
    "ProofConfig",
    "PruneConfig",
    "RecoverConfig",
    "RegisterConfig",
    "RelayConfig",
    "RetentionConfig",
    "RowSource",
    "RunConfig",
    "Section",
    "SelectConfig",
    "SparsifyConfig",
    "StackConfig",
    "StoreConfig",
    "TargetConfig",
    "TextSource",
    "ZeroShotConfig",
    "ZeroShotTask",
    "without_credentials",
]


class RunConfig(Section):
    """A whole compression run."""

    name: Name
    """Name of the run, the flow run and the report."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 17
    """Seed of every draw."""
    model: ModelConfig
    """Source model."""
    calibrate: CalibrateConfig
    """Calibration data."""
    prune: PruneConfig
    """Pruning."""
    select: SelectConfig | None = None
    """Recovery data; needed by recover."""
    recover: RecoverConfig | None = None
    """Recovery; absent: the pruned model goes on."""
    sparsify: SparsifyConfig | None = None
    """Zeros in a pattern; absent: the recovered or pruned model is what is exported."""
    evaluate: EvaluateConfig
    """Scores."""
    measure: MeasureConfig | None = MeasureConfig()
    """Speed and memory; null leaves them out."""
    gate: GateConfig | None = None
    """Bounds; absent: everything passes, and the report says so."""
    export: ExportConfig = ExportConfig()
    """Formats."""
    registration: RegisterConfig | None = Field(default=None, alias="register")
    """Model registry; absent: nothing is registered."""
    infra: InfraConfig = InfraConfig()
    """Where it runs."""

    @field_validator("export")
    @classmethod
    def _formats_of_the_layout(cls, export: ExportConfig, info: ValidationInfo) -> ExportConfig:
        prune = info.data.get("prune")
        if "formats" in export.model_fields_set or prune is None or prune.layout == "uniform":
            return export
        return export.model_copy(update={"formats": ("hf_layouts",)})

    @model_validator(mode="after")
    def _stages_that_need_each_other(self) -> RunConfig:
        if (self.select is None) != (self.recover is None):
            has, lacks = ("select", "recover") if self.recover is None else ("recover", "select")
            raise ValueError(
                f"{has} is given without {lacks}; recovery trains on selected rows: give both or neither"
            )
        if self.calibrate.method != "self_generated" and not self.calibrate.text:
            raise ValueError(
                f"calibrate.method is {self.calibrate.method} but calibrate.text is empty; name at least "
                "one source"
            )
        if self.gate and self.gate.min_accuracy_kept is not None and self.evaluate.zero_shot is None:
            raise ValueError(
                "gate.min_accuracy_kept needs accuracies; give evaluate.zero_shot or drop the bound"
            )
        group = int(self.sparsify.pattern.partition(":")[2]) if self.sparsify else 1
        cut = not self.prune.target.whole and {"ffn", "hidden"} & set(self.prune.units)
        if self.prune.round_to % group and cut:
            raise ValueError(
                f"sparsify.pattern takes weights in groups of {group}, which prune.round_to "
                f"{self.prune.round_to} does not keep whole; give a multiple of {group}"
            )
        if self.registration is not None and not self.export.formats:
            raise ValueError(
                "register needs an export, but export.formats is empty; set register: null or name a format"
            )
        return self

    def public(self) -> dict[str, Any]:
        """The config as plain data without secrets, and without credentials in the addresses of servers."""
        data = self.model_dump(mode="json")
        return {**data, "infra": _public(data["infra"])}


def _public(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _public(value) for key, value in data.items() if key not in SECRETS}
    if isinstance(data, list):
        return [_public(value) for value in data]
    return without_credentials(data) if isinstance(data, str) else data
