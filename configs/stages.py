"""Sections of the stages, in the order in which they run."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from resprout.configs.section import Name, Ratio, Section
from resprout.configs.sources import Address, DataSource, RowSource, TextSource

Unit = Literal["ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers"]
"""What a pruning method removes: FFN channels, KV groups with their query heads, query heads inside each
group (keys and values stay), experts with their router rows, hidden channels of the whole model, whole
layers, attention and FFN sublayers."""

DEPTH: tuple[Unit, ...] = ("layers", "sublayers")
"""Units that are pruned alone: each is a whole part of the decoder and has no width."""


class CalibrateConfig(Section):
    """The samples that pruning looks at."""

    method: str = "cola"
    """random, cola or self_generated (`resprout methods`)."""
    text: tuple[TextSource, ...] = ()
    """Sources of the samples; may be empty for self_generated."""
    samples: Annotated[int, Field(ge=1, le=65536)] = 64
    """Number of samples."""
    seq_len_tokens: Annotated[int, Field(ge=8)] = 256
    """Tokens in each sample."""
    candidates_per_sample: Annotated[int, Field(ge=4)] = 4
    """COLA chooses among samples * this many candidates."""
    projection_dim: Annotated[int, Field(ge=2)] = 64
    """COLA: width of each layer's random projection."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """self_generated: sampling temperature."""


class PaserConfig(Section):
    """PASER's own settings (arXiv 2502.12594)."""

    mode: Literal["faithful", "auto"] = "auto"
    """faithful follows the paper and its code; auto adds the measured corrections."""
    clusterer: Literal["diffusion_nmf", "kmeans"] = "diffusion_nmf"
    """How rows are grouped by capability."""
    clusters: Annotated[int, Field(ge=2, le=256)] | Literal["auto"] = 10
    """Number of clusters; auto searches 4 to 32."""
    embedder: Literal["minilm", "hidden", "tfidf"] = "tfidf"
    """minilm: a sentence encoder in `embedder_source`; hidden: the dense model's mean hidden state; tfidf:
    TF-IDF + SVD."""
    embedder_source: Address | None = None
    """Folder or package:// of the sentence encoder that `minilm` loads."""
    graph: Literal["literal", "top3"] = "top3"
    """Concepts in the consistency graph: all RAKE phrases, or the three best of each row."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the divergence."""
    duplicate_cosine: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """auto: instructions this similar with different answers are reduced to one."""

    @model_validator(mode="after")
    def _faithful_is_the_paper(self) -> PaserConfig:
        for name, given in (("clusterer", self.clusterer), ("clusters", self.clusters)):
            if self.mode == "faithful" and given in ("kmeans", "auto"):
                raise ValueError(
                    f"mode is faithful but {name} is {given}, which the paper does not have; set mode: auto, "
                    "or clusterer: diffusion_nmf and a number of clusters (the code's is 10)"
                )
        return self

    @model_validator(mode="after")
    def _minilm_has_a_source(self) -> PaserConfig:
        if self.embedder == "minilm" and not self.embedder_source:
            raise ValueError("embedder is minilm but embedder_source is empty; give the encoder's folder")
        return self

    def key_data(self) -> dict[str, Any]:
        """Without the encoder's address: its content enters the key as an input."""
        return {name: value for name, value in super().key_data().items() if name != "embedder_source"}


class SelectConfig(Section):
    """The rows that recovery trains on."""

    method: str = "paser"
    """paser or random (`resprout methods`)."""
    pool: tuple[RowSource, ...]
    """Sources of rows."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens (prompt and response) to select."""
    budget_ratio: Ratio | None = None
    """The same as a share of the pool's tokens."""
    template: Literal["alpaca", "chat"] = "alpaca"
    """Prompt form that divergence, training and token counts all use; chat is the tokenizer's own."""
    max_len_tokens: Annotated[int, Field(ge=16)] = 256
    """Longer rows are cut at the end of the response."""
    paser: PaserConfig = PaserConfig()
    """Settings of `method: paser`."""

    @model_validator(mode="after")
    def _one_budget(self) -> SelectConfig:
        if (self.budget_tokens is None) == (self.budget_ratio is None):
            raise ValueError(
                "select needs exactly one of budget_tokens and budget_ratio, e.g. budget_ratio: 0.2"
            )
        return self


class RecoverConfig(Section):
    """Training after pruning."""

    method: str = "lora"
    """lora, or full: all weights (`resprout methods`)."""
    rank: Annotated[int, Field(ge=1)] = 8
    """lora: rank of the adapters."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """lora: their scale; the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """lora: dropout in front of the adapters."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Peak learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the steps in which the rate rises; then it falls to zero along a cosine."""
    epochs: Annotated[float, Field(gt=0.0)] = 1.0
    """Passes over the token budget; steps = epochs * budget / batch_tokens for every selection method."""
    batch_tokens: Annotated[int, Field(ge=64)] = 2048
    """Tokens in a step, padding not counted."""
    distill_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the loss that is KL to the dense model's distribution; the rest is cross-entropy."""
    distill_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the distillation loss."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are clipped to this norm."""

    @property
    def part(self) -> tuple[float, float]:
        """The shares of all steps at which training begins and ends."""
        return 0.0, 1.0


class SparsifyConfig(Section):
    """Semi-structured sparsity of the final model: of `group` consecutive weights of a row, `kept` stay.

    After recovery, or after pruning where there is none. Zeros are stored like other values, so that files on
    disk do not shrink, nor does memory. NVIDIA GPUs from Ampere on multiply 2:4 matrices faster where a
    runtime packs them first (cuSPARSELt, TensorRT-LLM); for 4:8 they have nothing. Without other pruning:

        prune: {method: magnitude, target: {non_embedding_ratio: 1.0}}
        sparsify: {pattern: "2:4", method: sparsegpt}
    """

    pattern: Literal["2:4", "4:8"] = "2:4"
    """kept:group."""
    method: str = "wanda"
    """magnitude, wanda or sparsegpt (`resprout methods`)."""
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The method's own settings (`resprout methods --json` lists them)."""


class PartOfRecovery(RecoverConfig):
    """The training between two rounds of a pruning schedule: a share of a recovery's steps."""

    begin: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the steps that came before."""
    end: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the steps that are done afterwards."""

    @property
    def part(self) -> tuple[float, float]:
        return self.begin, self.end


class PerplexityConfig(Section):
    """Perplexity in a stated protocol."""

    name: Name = "text"
    """Corpus name in the metric's name."""
    text: Annotated[tuple[TextSource, ...], Field(min_length=1)]
    """Held-out text."""
    window_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens of a window."""
    stride_tokens: Annotated[int, Field(ge=1)] | None = None
    """Step between windows; each token counts once. Default: window_tokens, no overlap."""
    limit_tokens: Annotated[int, Field(ge=8)] | None = None
    """At most this many tokens from the start of the joined text."""
    bos: bool = False
    """Put the BOS token in front of each window."""
    join: str = "\n\n"
    """Separator of documents."""
    kl_tokens: Annotated[int, Field(ge=8)] | None = None
    """KL divergence from the dense model on the first this many scored tokens; default: all of them."""

    @model_validator(mode="after")
    def _stride_fits(self) -> PerplexityConfig:
        if self.stride_tokens is not None and self.stride_tokens > self.window_tokens:
            raise ValueError(
                f"stride_tokens {self.stride_tokens} exceeds window_tokens {self.window_tokens}, so tokens "
                "would be skipped; give a stride of at most the window"
            )
        return self


class ZeroShotTask(Section):
    """One lm-eval task on a local file."""

    task: str
    """A YAML of configs/evaluation without its ending (`resprout methods`), or the path of your own lm-eval
    YAML."""
    data: DataSource
    """The rows; columns as the task's templates name them."""

    @property
    def name(self) -> str:
        """Name in metrics: the YAML's, without folder and ending."""
        return PurePath(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    def key_data(self) -> dict[str, Any]:
        """The name alone: settings and rows enter the key by their digest."""
        return {"name": self.name}


class ZeroShotConfig(Section):
    """Multiple-choice tasks through lm-eval."""

    tasks: Annotated[tuple[ZeroShotTask, ...], Field(min_length=1)]
    """Which tasks, on which files."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many items of each task."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Requests in a batch."""

    @model_validator(mode="after")
    def _names_differ(self) -> ZeroShotConfig:
        names = [one.name for one in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the task {twice[0]} is given twice; rename one of the YAML files")
        return self


class EvaluateConfig(Section):
    """Scores of dense, pruned and recovered by the same evaluator."""

    perplexity: PerplexityConfig
    """Perplexity and divergence from the dense model."""
    zero_shot: ZeroShotConfig | None = None
    """Accuracies; left out where absent."""


class MeasureConfig(Section):
    """Speed and memory of all models of a run, each in a child process of its own, timed in rounds."""

    prefill_tokens: Annotated[int, Field(ge=8)] = 512
    """Length of the prompt."""
    decode_tokens: Annotated[int, Field(ge=2)] = 32
    """Tokens generated greedily after it."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Sequences at a time."""
    repeats: Annotated[int, Field(ge=3)] = 9
    """Rounds in which each model is timed once. Medians count; ratios have intervals of 95 % from 6 on."""
    warmup: Annotated[int, Field(ge=1)] = 2
    """Runs before timing starts."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; default: torch's own choice."""


class GateConfig(Section):
    """Bounds relative to the dense model, measured in the same run."""

    max_perplexity_ratio: Annotated[float, Field(gt=0.0)] | None = None
    """Recovered perplexity / dense perplexity."""
    max_kl_nats: Annotated[float, Field(gt=0.0)] | None = None
    """Mean KL(dense || recovered) in nats a token."""
    min_accuracy_kept: Annotated[float, Field(gt=0.0)] | None = None
    """Mean recovered accuracy / mean dense accuracy over the zero-shot tasks."""
    max_params_ratio: Ratio | None = None
    """Recovered parameters / dense parameters."""

    @model_validator(mode="after")
    def _some_bound(self) -> GateConfig:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(
                f"the gate has no bound; give at least one of {', '.join(type(self).model_fields)}"
            )
        return self


class ExportConfig(Section):
    """Formats to write; each is loaded again by its stock tool before it counts."""

    formats: tuple[str, ...] = ("hf",)
    """Formats to write (`resprout methods`). Left out: hf, and where prune.layout is per_layer hf_layouts."""
    prompts: Annotated[tuple[str, ...], Field(min_length=5)] = (
        "The capital of France is",
        "Water boils at a temperature of",
        "def fibonacci(n):",
        "In 1969, the first humans",
        "To make a cup of tea, first",
    )
    """Prompts on which logits and greedy text are compared."""
    greedy_tokens: Annotated[int, Field(ge=1)] = 16
    """Tokens of greedy text compared for each prompt."""
    max_abs_logit_diff: Annotated[float, Field(ge=0.0)] = 0.0
    """Largest allowed difference of a logit; the same dtype on the same machine gives 0."""


class RegisterConfig(Section):
    """The model version that a passed gate makes."""

    name: Name
    """Registered model's name."""
    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,255}$")] | None = "candidate"
    """Alias that is moved to the version."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Further tags of the version; resprout.* are its own."""

    @field_validator("alias")
    @classmethod
    def _alias_is_free(cls, alias: str | None) -> str | None:
        if alias is not None and (alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)):
            raise ValueError("latest and v1, v2, ... are MLflow's own; give another alias")
        return alias

    @field_validator("tags")
    @classmethod
    def _leave_our_own(cls, tags: dict[str, str]) -> dict[str, str]:
        own = sorted(name for name in tags if name.startswith("resprout."))
        if own:
            raise ValueError(f"{own[0]} is written by resprout itself; give the tag a name without resprout.")
        return tags
