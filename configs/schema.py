"""The config of a whole run, a section a stage: strict, frozen, with the unit of a quantity in its name."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from resprout.configs.blocks import multiple_of
from resprout.configs.formats import WITH_TYPES, FormatName, FormatNames
from resprout.configs.infrastructure import (
    SECRETS,
    InfraConfig,
    without_credentials,
)
from resprout.configs.presets import DEPTH, Layout, Preset, Unit, load_preset, preset_names
from resprout.configs.section import Name, Percent, Ratio, Section
from resprout.configs.suites import ENDINGS, shipped_suite, shipped_tasks


def _without_password(address: str) -> str:
    """Addresses are printed, and kept in records, in MLflow and in Prefect's database."""
    if without_credentials(address) != address:
        raise ValueError(
            "a password or key in the address would be printed and kept; leave it out, and give the keys of "
            "a bucket as infra.store.access_key_id and secret_access_key, or in the environment"
        )
    return address


Address = Annotated[str, AfterValidator(_without_password)]
"""Address of a source; holds no password."""


class ModelConfig(Section):
    """The model to compress and how it is held in memory."""

    source: Address
    """Folder, package://module/path, hf://org/name@revision, s3://bucket/prefix, models:/name/3 or
    name@alias."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Dtype of weights and activations in every stage, and of the export."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which stages compute; auto takes CUDA where the installed torch and the machine have it."""
    device_map: Literal["none", "auto"] = "none"
    """none: the whole model on `device`; auto: its layers on all GPUs, then in memory, then on disk, for a
    model larger than one device. The same bytes."""
    max_memory: dict[Annotated[str, Field(pattern=r"^(cpu|\d+)$")], ByteSize] = Field(default_factory=dict)
    """With device_map: auto, most bytes of weights by device: {cpu: "60 GB", "0": "70 GB"}. Of devices left
    out, nine tenths of what is free."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; leave off unless you read that code."""
    allow_pickle: bool = False
    """Convert pickled weights by transformers' weights-only loader, in a child process."""
    licence: str | None = None
    """Licence of the source model, recorded in its lineage; read from the model's own files where absent."""

    @model_validator(mode="after")
    def _limits_are_used(self) -> ModelConfig:
        if self.max_memory and self.device_map == "none":
            raise ValueError("max_memory is given without device_map: auto; give both or neither")
        gpus = sorted(one for one in self.max_memory if one != "cpu")
        if gpus and self.device == "cpu":
            raise ValueError(f"max_memory names GPU {gpus[0]}, but device is cpu; leave one of them out")
        return self

    @property
    def spread(self) -> dict[str, int] | None:
        """Most bytes by device for a model on all devices; None where it lies on one."""
        return dict(self.max_memory) if self.device_map == "auto" else None


class DataSource(Section):
    """A file or data set, and which of its rows are taken."""

    enters_key: ClassVar[bool] = False

    source: Address
    """Local path or pattern of paths (folder/train-*.parquet), package://module/path, s3://bucket/key, or
    hf-dataset://org/name[/config][@revision]#split."""
    format: Literal["auto", "jsonl", "json", "parquet", "csv", "text", "arrow", "grammar"] = "auto"
    """File format; auto goes by the name's ending (.gz allowed). Of a folder the files with its endings are
    read. grammar: YAML that rows are made by."""
    where: str | None = None
    """Jinja expression over the row's columns; rows for which it is false are left out."""
    hash_percent: tuple[Percent, Percent] = (0, 100)
    """Keep rows whose sha256 of `hash_of` modulo 100 is in [low, high): a split that no order changes."""
    hash_of: str | None = None
    """Jinja template of what is hashed; default: the text, or instruction, input and output together."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many rows, drawn with the run's seed."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """skip: rows and documents that cannot be read, on which a template or `where` fails, or that lack text,
    task or answer are left out and counted."""
    max_part: Annotated[ByteSize, Field(ge=1)] = ByteSize(64_000_000)
    """Largest line or element of JSON, row group, record batch or document that is read, such as 200 MB."""
    licence: str | None = None
    """Licence of the data, recorded in the lineage."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> DataSource:
        low, high = self.hash_percent
        if low >= high:
            raise ValueError(
                f"hash_percent is [{low}, {high}), which holds no row; give low < high, e.g. [0, 40]"
            )
        return self


class TextSource(DataSource):
    """Running text: calibration or perplexity."""

    text: str = "{{ text }}"
    """Jinja template over the row's columns that renders one document; of a chat
    "{{ messages | all_turns }}"."""


class RowSource(DataSource):
    """Instruction rows in Alpaca form, rendered from any columns by Jinja templates."""

    instruction: str = "{{ instruction }}"
    """Template of the task that the row sets; of a chat "{{ messages | first_question }}"."""
    input: str = "{{ input | default('') }}"
    """Template of the material that the task is about; may be empty."""
    output: str = "{{ output }}"
    """Template of the answer that the model learns; of a chat "{{ messages | first_answer }}"."""
    category: str = "{{ category | default('') }}"
    """Template of a label that reports group by; of the methods only `stratified` looks at it."""


class DocumentSource(DataSource):
    """Documents that rows are made of: files of text, Markdown or HTML, or rows that each hold one."""

    text: str = "{{ text }}"
    """Of data with rows: Jinja template over its columns that renders one document."""
    markup: Literal["auto", "text", "markdown", "html"] = "auto"
    """Markup of the documents; auto: by file extension (.md, .html, else plain text)."""


class PrepareConfig(Section):
    """How documents become rows: passages under their headings, with what stands before."""

    passage_tokens: Annotated[int, Field(ge=16)] = 128
    """Tokens of the model in a passage at most; it ends with a block, where one is longer with a sentence or
    a line, and where this is longer with a word."""
    min_tokens: Annotated[int, Field(ge=1)] = 24
    """Shorter passages make no row."""
    context_tokens: Annotated[int, Field(ge=0)] = 48
    """Tokens of the sentences before that are shown as input: those directly before, and the most relevant
    to the instruction. At 0, and where none stands before, a passage's opening is shown."""
    instruction: str = (
        "Continue the text{% if headings %} under the heading: {{ headings | join(' > ') }}"
        "{% elif name %} of {{ name }}{% endif %}"
    )
    """Template over `headings`, the highest first, and `name`: the document's file, or of a row of data its
    `title`, if it has one."""
    category: str = "documents"
    """Label of the rows, by which reports group."""
    language: str = "en"
    """Code of the language by whose rules sentences end (ISO 639, in small letters: en, pt-br); by general
    rules where sentencex has none for it."""

    @field_validator("language")
    @classmethod
    def _language_is_a_code(cls, given: str) -> str:
        if not re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", given):
            raise ValueError(
                f"{given!r} is no code of a language; give one of ISO 639 in small letters, as en or pt-br"
            )
        return given

    @model_validator(mode="after")
    def _passages_are_long_enough(self) -> PrepareConfig:
        if self.min_tokens > self.passage_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}, and no passage has more than passage_tokens "
                f"{self.passage_tokens}; lower the one, or raise the other"
            )
        return self


class CalibrateConfig(Section):
    """The samples that pruning computes with."""

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


class TargetConfig(Section):
    """How large the pruned model may be; exactly one form."""

    params_ratio: Ratio | None = None
    """Kept share of all unique parameters, a tied tensor counted once."""
    non_embedding_ratio: Ratio | None = None
    """Kept share of the parameters outside token embeddings and an untied head."""
    params: Annotated[int, Field(ge=1)] | None = None
    """Number of unique parameters."""
    non_embedding_params: Annotated[int, Field(ge=1)] | None = None
    """Number of parameters outside token embeddings and an untied head."""
    bytes: Annotated[ByteSize, Field(ge=1)] | None = None
    """Bytes of all unique weights in model.dtype; a number, or one with a unit such as "250 MB"."""
    latency_ratio: Ratio | None = None
    """Kept share of the time of a forward pass over a batch of calibration tokens, measured on this machine;
    allocator spdy or dynamic_programming."""
    latency_ms: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Milliseconds of that forward pass, likewise."""

    @property
    def whole(self) -> bool:
        """Whether nothing is to go."""
        return 1.0 in (self.params_ratio, self.non_embedding_ratio)

    @property
    def timed(self) -> bool:
        """Whether the target is a time."""
        return self.latency_ratio is not None or self.latency_ms is not None

    @field_validator("bytes", mode="wrap")
    @classmethod
    def _is_a_size(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(
                "no size of at least one byte; give a whole number of bytes, or a number with a unit such as "
                "250 MB"
            ) from None

    @model_validator(mode="after")
    def _one_form(self) -> TargetConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            forms = ", ".join(type(self).model_fields)
            raise ValueError(f"the target names {', '.join(given) or 'nothing'}; give exactly one of {forms}")
        return self


LEFT_OUT: Any = None
"""Stands for what the preset gives until it is validated."""


def _without_default(schema: dict[str, Any]) -> None:
    """The default depends on the method."""
    del schema["default"]


def _preset(info: ValidationInfo) -> Preset:
    """The section's preset; any where its name is at fault, which is reported."""
    return load_preset(info.data.get("method", preset_names()[0]))


AUTO = "auto"
RoundTo = Annotated[
    int, Field(ge=1), WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]})
]


class PruneConfig(Section):
    """Score, allocate, plan, apply, repair."""

    method: str = "recommended"
    """A preset of configs/methods: it names criterion, allocator and repair. Left out: `recommended`."""
    criterion: str | None = None
    """Overrides the preset's criterion."""
    allocator: str | None = None
    """Overrides the preset's allocator."""
    repair: str | None = None
    """Overrides the preset's repair of what the removed channels contributed."""
    units: tuple[Unit, ...] = Field(default=LEFT_OUT, json_schema_extra=_without_default)
    """Units to remove: ffn (channels), kv_groups (with their query heads), heads (query heads inside each
    group), experts, hidden (channels of the residual stream, in the whole model); or layers alone, or
    sublayers (attention and FFN, each by itself) alone. Left out: what the method's paper prunes."""
    target: TargetConfig
    """Size to reach."""
    round_to: RoundTo = 128
    """FFN widths and the hidden size are multiples of this; 128 suits GEMM kernels. auto: what the formats of
    quantize can hold, 256 for K-quants of llama.cpp, 32 for its other types."""
    layout: Layout = Field(default=LEFT_OUT, json_schema_extra=_without_default)
    """uniform: one width for all layers, which stock classes load; per_layer: a width for each layer. Left
    out: the method's own (`resprout methods NAME`)."""
    spared_front: int | float | None = None
    """Layers at the front whose widths stay, whatever the allocator: a number, or a share of the depth below
    1, rounded down. Left out: the method's own."""
    spared_back: int | float | None = None
    """The same at the back; a share is rounded up."""
    min_kept_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of its units of each kind that every layer keeps, whatever the allocator."""
    criterion_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The criterion's own settings (`resprout methods NAME` lists them), put over the preset's."""
    allocator_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The allocator's own settings, likewise."""
    repair_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The repair's own settings, likewise."""
    general: tuple[TextSource, ...] = ()
    """Open-domain text beside calibrate.text, for criteria that weigh a domain against it (domain_dual)."""
    schedule: str = "one_shot"
    """When units go: one_shot, or in rounds with training between them (`resprout methods`)."""
    schedule_settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """The schedule's own settings, likewise."""
    memory: Literal["whole", "stream"] = "whole"
    """whole: the model in memory; stream: one layer at a time, for models that do not fit. The same bytes."""
    ridge: Annotated[float, Field(ge=0.0)] = 0.01
    """least_squares: damping as a share of the mean diagonal of the Gram matrix."""

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        load_preset(method)
        return method

    @field_validator("units", mode="before")
    @classmethod
    def _own_units(cls, given: Any, info: ValidationInfo) -> Any:
        return _preset(info).units if given is None else given

    @field_validator("layout", mode="before")
    @classmethod
    def _own_layout(cls, given: Any, info: ValidationInfo) -> Any:
        preset = _preset(info)
        return preset.own_layout(info.data.get("units", preset.units)) if given is None else given

    @field_validator("spared_front", "spared_back", mode="before")
    @classmethod
    def _number_or_share(cls, given: Any, info: ValidationInfo) -> Any:
        number = isinstance(given, int) and not isinstance(given, bool) and given >= 0
        if given is None or number or (isinstance(given, float) and 0 <= given < 1):
            return given
        raise ValueError(
            f"{info.field_name} is {given!r}; give a number of layers, or a share below 1 of the depth"
        )

    @field_validator("units")
    @classmethod
    def _some_units(cls, units: tuple[str, ...]) -> tuple[str, ...]:
        if not units or len(set(units)) != len(units):
            raise ValueError(f"units is {list(units)}; name some of {', '.join(get_args(Unit))}, each once")
        if len(units) > 1 and (depth := [unit for unit in units if unit in DEPTH]):
            raise ValueError(
                f"units names {' and '.join(units)}, but {depth[0]} are pruned alone; give units: "
                f"[{depth[0]}] and prune widths in another run"
            )
        return units

    @model_validator(mode="after")
    def _sublayers_need_a_layout(self) -> PruneConfig:
        if "sublayers" in self.units and self.layout == "uniform":
            raise ValueError(
                "units is [sublayers], but layout is uniform, and stock classes load no layer that lacks "
                "attention or FFN; give layout: per_layer, or units: [layers]"
            )
        return self


class PruneRound(PruneConfig):
    """One round of a pruning schedule before the last."""

    done: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """How far it goes from the dense size to the target."""


class PaserConfig(Section):
    """PASER's own settings (arXiv 2502.12594)."""

    mode: Literal["auto", "paper", "released"] = "auto"
    """auto: ours, for pools of any size; paper: the paper's equations; released: with the choices of its
    code. The last two hold every row against every other, up to 4,000, and count the budget in rows."""
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
    """auto: concepts in the consistency graph, all RAKE phrases or the three best of each row."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the divergence."""
    dense: Literal["online", "kept"] = "online"
    """kept: the divergence is computed from the dense model's likeliest tokens on the whole pool, kept once
    for all models pruned from it; it errs to the low side, by no more than the summary says."""
    top_k: Annotated[int, Field(ge=1)] = 64
    """kept: tokens at each place, beside the mass of the rest; 4 bytes each."""
    duplicate_cosine: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """auto: instructions this similar with different answers are reduced to one."""
    landmarks: Annotated[int, Field(ge=100, le=4000)] = 2000
    """auto, above 4,000 rows: rows of the diffusion map, by which all others are placed."""
    sample_rows: Annotated[int, Field(ge=30)] | None = 300
    """auto, above 4,000 rows: rows of each cluster that are compared to estimate its degradation; null: all
    are, which shards can share."""
    shortlist: Annotated[float, Field(ge=1.0)] = 4.0
    """auto, with sample_rows: rows of each cluster that are compared to choose from, in times its budget."""
    max_ifd: Annotated[float, Field(gt=0.0)] | None = None
    """auto: rows whose question multiplies the dense model's perplexity on the answer by more than this are
    left out, as noise is by 1; it takes two passes of that model over the pool."""
    pilot_tokens: Annotated[int, Field(ge=64)] | None = None
    """auto: tokens of a short recovery on random rows; clusters that it heals get more of the budget."""

    @property
    def published(self) -> bool:
        """Whether it is a mode that others described."""
        return self.mode != "auto"

    @model_validator(mode="before")
    @classmethod
    def _published_graphs_hold_all_concepts(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("mode") in ("paper", "released"):
            return {"graph": "literal", **given}
        return given

    @model_validator(mode="after")
    def _published_modes_are_as_published(self) -> PaserConfig:
        ours = {
            "clusterer": self.clusterer == "kmeans",
            "clusters": self.clusters == "auto",
            "graph": self.graph == "top3",
            "max_ifd": self.max_ifd is not None,
            "pilot_tokens": self.pilot_tokens is not None,
        }
        for name in (name for name, is_ours in ours.items() if is_ours and self.published):
            raise ValueError(
                f"mode is {self.mode} but {name} is {getattr(self, name)}, which the paper does not have; "
                "set mode: auto, or leave it out (clusters: a number, the code's is 10)"
            )
        return self

    @model_validator(mode="after")
    def _landmarks_hold_the_clusters(self) -> PaserConfig:
        if self.clusters != "auto" and self.clusters >= self.landmarks:
            raise ValueError(
                f"clusters is {self.clusters}, but the diffusion map has {self.landmarks} landmarks; give "
                "more landmarks than clusters"
            )
        return self

    @model_validator(mode="after")
    def _kept_words_are_enough(self) -> PaserConfig:
        if self.dense == "kept" and (self.embedder == "hidden" or self.max_ifd is not None):
            needs = "embedder hidden" if self.embedder == "hidden" else "max_ifd"
            raise ValueError(f"dense is kept, but {needs} needs the dense model itself; set dense: online")
        return self

    @model_validator(mode="after")
    def _minilm_has_a_source(self) -> PaserConfig:
        if self.embedder == "minilm" and not self.embedder_source:
            raise ValueError("embedder is minilm but embedder_source is empty; give the encoder's folder")
        return self

    def key_data(self) -> dict[str, Any]:
        """Without the encoder's address, whose content is an input, and what the mode does not read."""
        unread = {"embedder_source"}
        if self.published:
            unread |= {"duplicate_cosine", "landmarks", "sample_rows", "shortlist", "max_ifd", "pilot_tokens"}
        if self.dense == "online":
            unread.add("top_k")
        return {name: value for name, value in super().key_data().items() if name not in unread}


class FilterConfig(Section):
    """Which rows no method may choose."""

    near_duplicates: bool = True
    """Rows whose words are nearly those of an earlier one: a Jaccard index of 0.9 of their runs of three
    words, beside those that many rows hold, and of at least 0.5 of their answers."""
    contaminated_words: Annotated[int, Field(ge=5)] | None = 13
    """Rows that share so many words in succession, of Chinese say characters, with the text or the tasks of
    `evaluate`; null: none."""


class AnswersConfig(Section):
    """How the dense model answers the selected rows, where `select.targets` wants its own words."""

    reference: bool = False
    """The row's own answer stands in the prompt as a guide (self-data distillation, arXiv 2410.09982)."""
    template: Literal["alpaca", "chat"] | None = None
    """Prompt template for generating answers; absent: chat where the model's chat template renders the rows,
    else `select.template`. Training uses `select.template` either way."""
    result: Annotated[str, Field(min_length=1)] | None = None
    """Expression of what an answer comes to, say '#### (.+)'; one that comes to another is not trained on."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Sampling temperature; 1 samples from the dense model's own distribution, 0 is greedy decoding, on
    which recovery made a model worse than without (tests/benchmarks/README.md)."""
    batch_rows: Annotated[int, Field(ge=1)] = 16
    """Rows that are answered at once."""

    @field_validator("result")
    @classmethod
    def _an_expression(cls, result: str | None) -> str | None:
        try:
            groups = 0 if result is None else re.compile(result).groups
        except re.error as error:
            raise ValueError(
                f"result is {result!r}, which is no regular expression ({error}); give one, say '#### (.+)'"
            ) from None
        if groups > 1:
            raise ValueError(
                f"result {result!r} has {groups} groups; give the one that holds the result, and (?:...) for "
                "the others"
            )
        return result


PASER_FORMS: dict[str, dict[str, Any]] = {
    "auto": {"mode": "auto", "clusterer": "diffusion_nmf"},
    "aimed": {"mode": "auto", "clusterer": "diffusion_nmf"},
    "kmeans": {"mode": "auto", "clusterer": "kmeans"},
    "paper": {"mode": "paper"},
    "released": {"mode": "released"},
}
"""Settings of `paser` by the names under which its forms are compared."""


class CapabilitiesConfig(Section):
    """Target capabilities of the model, given by example rows."""

    rows: Annotated[tuple[RowSource, ...], Field(min_length=1)]
    """Sources of such rows, some hundred of them; none is trained on. rds_plus chooses rows like them, paser
    gives their clusters the budget."""
    reserve: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """paser: share of the budget that goes to all clusters by their degradation alone."""


class SelectConfig(Section):
    """The rows that recovery trains on."""

    method: str = "paser"
    """paser or a baseline: random, stratified, longest, rds_plus, ifd, perplexity, full (`resprout
    methods`)."""
    pool: tuple[RowSource, ...] = ()
    """Sources of rows."""
    documents: tuple[DocumentSource, ...] = ()
    """Documents that rows are made of, beside the pool or without one."""
    prepare: PrepareConfig = PrepareConfig()
    """How rows are made of documents."""
    filter: FilterConfig = FilterConfig()
    """Rows that are left out before a method chooses."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens (prompt and response) to select."""
    budget_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows to select, in place of tokens."""
    budget_ratio: Ratio | None = None
    """The same as a share of the pool: of its tokens, or of its rows where paser.mode is paper or
    released."""
    template: Literal["alpaca", "chat"] = "alpaca"
    """Prompt form that divergence, training and token counts all use; chat is the tokenizer's own."""
    max_len_tokens: Annotated[int, Field(ge=16)] = 256
    """Longer rows are cut at the end of the response."""
    paser: PaserConfig = PaserConfig()
    """Settings of `method: paser`."""
    capabilities: CapabilitiesConfig | None = None
    """Target capabilities; absent: those of the whole pool."""
    compare: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z_]*(:(self|mixed))?$")], ...] = ()
    """Other selections that are recovered and judged beside this one on the same schedule, random always
    among them: methods, forms of paser (auto, kmeans, paper, released, and aimed, which alone looks at
    `capabilities`), and with :self or :mixed those `targets`."""
    compare_seeds: Annotated[int, Field(ge=1)] = 3
    """Seeds by which each is selected and trained, from the run's own on; one says nothing of chance."""
    targets: Literal["original", "self", "mixed"] = "original"
    """Answers that are trained on: the rows' own, the dense model's, or the rows' own where those fail."""
    answers: AnswersConfig = AnswersConfig()
    """Settings of `targets: self` and `mixed`."""

    @model_validator(mode="after")
    def _answers_are_asked_for(self) -> SelectConfig:
        compared = any(":" in name for name in self.compare)
        if self.targets == "original" and not compared and self.answers != AnswersConfig():
            raise ValueError(
                "select.answers says how the dense model answers, but targets is original, where it does "
                "not; give targets: mixed or self, compare one with :self or :mixed, or drop it"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _published_modes_filter_nothing_alike(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("method", "paser") != "paser":
            return given
        paser, filtered = given.get("paser"), given.get("filter", {})
        mode = paser.get("mode") if isinstance(paser, dict) else getattr(paser, "mode", "auto")
        if mode in ("paper", "released") and isinstance(filtered, dict):
            return {**given, "filter": {"near_duplicates": False, **filtered}}
        return given

    @model_validator(mode="after")
    def _one_budget(self) -> SelectConfig:
        given = (self.budget_tokens, self.budget_rows, self.budget_ratio)
        if sum(one is not None for one in given) != 1:
            raise ValueError(
                "select needs exactly one of budget_tokens, budget_rows and budget_ratio, e.g. budget_ratio: "
                "0.2"
            )
        if self.budget_tokens is not None and self.counts_rows:
            raise ValueError(
                f"select.paser.mode is {self.paser.mode}, whose budget counts rows, but budget_tokens is "
                "given; give budget_rows or budget_ratio"
            )
        return self

    @model_validator(mode="after")
    def _rows_come_from_somewhere(self) -> SelectConfig:
        if not self.pool and not self.documents:
            raise ValueError("select has no rows; give pool, sources of rows, or documents, or both")
        return self

    @model_validator(mode="after")
    def _prepared_rows_fit(self) -> SelectConfig:
        made = self.prepare.passage_tokens + self.prepare.context_tokens
        if self.documents and made >= self.max_len_tokens:
            raise ValueError(
                f"a row of select.documents takes up to {made} tokens and its prompt "
                f"(prepare.passage_tokens {self.prepare.passage_tokens}, context_tokens "
                f"{self.prepare.context_tokens}), but max_len_tokens is {self.max_len_tokens}, at which "
                "answers are cut; raise it, or make shorter passages"
            )
        return self

    @model_validator(mode="after")
    def _capabilities_are_used(self) -> SelectConfig:
        if self.capabilities is not None and self.method == "paser" and self.paser.published:
            raise ValueError(
                f"select.capabilities is given, which paser.mode {self.paser.mode} does not know; set "
                "paser.mode: auto, or drop it"
            )
        return self

    @field_validator("compare")
    @classmethod
    def _random_is_compared(cls, compare: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(compare)) != len(compare):
            raise ValueError("compare names a selection twice; name each once")
        if any(name.partition(":")[0] == "paser" for name in compare):
            raise ValueError(f"compare holds paser; name one of its forms: {', '.join(PASER_FORMS)}")
        return compare if not compare or "random" in compare else ("random", *compare)

    @model_validator(mode="after")
    def _alternatives_are_selections(self) -> SelectConfig:
        for name in self.compare:
            try:
                self.alternative(name)
            except ValidationError as error:
                fault = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"compare holds {name}: {fault}") from None
        forms = [one.paser for one in self.arms.values() if one.method == "paser"]
        if len({one.mode == "released" for one in forms}) > 1 and self.paser.dense == "kept":
            raise ValueError(
                "compare holds released, which compares prompts, beside forms of paser that compare answers, "
                "but paser.dense is kept, which is kept for one of the two; set dense: online, or drop one"
            )
        return self

    @property
    def label(self) -> str:
        """The name under which it is compared with others."""
        form = self.method
        if form == "paser":
            form = "kmeans" if self.paser.clusterer == "kmeans" else self.paser.mode
            if self.capabilities is not None:
                form = "aimed" if form == "auto" else f"{form}_aimed"
        return form if self.targets == "original" else f"{form}:{self.targets}"

    @property
    def arms(self) -> dict[str, SelectConfig]:
        """By name all selections that a run makes, its own among them."""
        return {name: self.alternative(name) for name in self.compare} | {self.label: self}

    def alternative(self, name: str) -> SelectConfig:
        """The selection of this name, one of `compare`, from the same filtered pool on the same budget."""
        form, _, targets = name.partition(":")
        own = {field: getattr(self, field) for field in type(self).model_fields}
        own |= {"compare": (), "method": form, "targets": targets or "original"}
        if not targets:
            own["answers"] = AnswersConfig()
        if form in PASER_FORMS:
            given = {field: getattr(self.paser, field) for field in self.paser.model_fields_set}
            if form in ("paper", "released") or self.paser.published:
                ours = ("graph", "max_ifd", "pilot_tokens", "clusterer")
                given = {field: value for field, value in given.items() if field not in ours}
            if form != "aimed":
                own["capabilities"] = None
            elif self.capabilities is None:
                raise ValueError("aimed looks at select.capabilities, which is absent; give its rows")
            own |= {"method": "paser", "paser": PaserConfig(**{**given, **PASER_FORMS[form]})}
        return type(self)(**own)

    @property
    def counts_rows(self) -> bool:
        """Whether the budget is in rows."""
        return self.budget_rows is not None or (self.method == "paser" and self.paser.published)


class RecoveryText(TextSource):
    """Running text that recovery trains on, all of its tokens."""

    weight: Annotated[float, Field(ge=0.0)] | None = None
    """Share of the training tokens, beside the other weights; absent everywhere: by the number of tokens."""


class DistillConfig(Section):
    """How the student is taught by the dense model; how much, `recover.distill_weight` says."""

    loss: Literal["forward", "reverse", "skewed_forward", "skewed_reverse"] = "forward"
    """forward: KL(dense || student); reverse: KL(student || dense); skewed: with a mixture of both."""
    skew: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """skewed: share of the mixture that is the distribution compared with it."""
    teacher: Literal["online", "disk"] = "online"
    """online: the dense model runs beside the student; disk: its most likely tokens, once for all runs."""
    top_k: Annotated[int, Field(ge=1, le=4096)] = 64
    """disk: tokens whose probabilities are kept; the mass of the others is one number."""
    hidden: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of how far each layer's output is from the dense model's, beside the rest of the loss."""
    attention: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of how far each attention's output is from the dense model's."""
    on_policy: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the steps in which the student is taught on what it wrote itself."""

    @model_validator(mode="after")
    def _states_need_the_model(self) -> DistillConfig:
        if self.teacher == "disk" and self.on_policy:
            raise ValueError(
                "recover.distill.on_policy asks the teacher about what the student writes, which a teacher "
                "on disk was not asked about; give teacher: online, or drop it"
            )
        if self.teacher == "disk" and (self.hidden or self.attention):
            raise ValueError(
                "recover.distill.hidden and attention compare states inside both models, which a teacher on "
                "disk does not have; give teacher: online, or drop them"
            )
        return self


class ReconstructConfig(Section):
    """Recovery by `reconstruct`: each part of the pruned model against the dense one's, no loss on tokens.

    The defaults are those of the authors' code, and the granularity that their paper found best.
    """

    solver: Literal["gradient", "closed_form"] = "gradient"
    """gradient: steps on all weights of a part; closed_form: least squares for the matrices that read heads
    and channels (o_proj, down_proj), the others stay."""
    granularity: Literal["sublayers", "block"] = "sublayers"
    """gradient: attention and FFN apart, or the whole layer at once."""
    inputs: Literal["dense", "pruned"] = "dense"
    """Inputs of a part: the dense model's states there, or those that the parts reconstructed before give."""
    samples: Annotated[int, Field(ge=1)] = 128
    """Rows of the selection that are looked at, drawn by the seed; all where it has fewer."""
    batch_rows: Annotated[int, Field(ge=1)] = 2
    """Rows in a step."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """gradient: passes over the rows for each part."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    """gradient: peak rate; it rises over a tenth of the steps and falls to zero along a line."""
    ridge: Annotated[float, Field(gt=0.0)] = 0.01
    """closed_form: pull towards the given weights, as a share of the mean square of a feature."""
    memory: Literal["stream", "whole"] = "stream"
    """stream: one layer of each model in memory, read from its files; whole: both models. The same bytes."""


class LoraConfig(Section):
    """Variants of recovery by `lora`, all by peft."""

    init: Literal["default", "pissa", "eva", "corda", "olora"] = "default"
    """default: B is zero; pissa: the largest singular parts of each weight; corda: those that count on the
    recovery rows; olora: the orthogonal factor of each weight; eva: A by the rows' activations, B zero, ranks
    moved to where activations vary."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), which large ranks need."""
    dora: bool = False
    """Train the length of each weight's rows beside their direction."""
    targets: tuple[str, ...] = ()
    """Ends of the names of matrices that get adapters, say [q_proj, mlp.down_proj]; none given: all of
    attention and FFN. Routers never do."""
    experts: bool = False
    """Adapters on experts whose weights are fused too; needs dropout: 0 and init: default."""
    ranks: Literal["uniform", "cfsp", "increlora"] = "uniform"
    """cfsp: rank times layers shared out by how far each layer turns the residual stream on the rows;
    increlora: each matrix begins with 1 and grows in training where it counts, to `rank` in the mean, which
    takes the gradients of whole matrices meanwhile."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Ranks by ends of names, where not `rank`; the scale of the update stays."""

    @model_validator(mode="after")
    def _together(self) -> LoraConfig:
        faults = (
            (self.experts and self.dora, "recover.lora.experts and dora", "fused weights have no rows"),
            (self.experts and self.init != "default", f"recover.lora.experts and init: {self.init}",
             "peft starts fused experts by default alone"),
            (self.ranks != "uniform" and bool(self.rank_pattern), f"recover.lora.ranks: {self.ranks} and "
             "rank_pattern", "each says the ranks"),
            (self.init == "eva" and (self.ranks != "uniform" or bool(self.rank_pattern)),
             "recover.lora.init: eva and ranks by layer", "eva moves ranks itself"),
            (self.init == "eva" and self.dora, "recover.lora.init: eva and dora",
             "no test holds that the two merge into a plain model"),
            (self.ranks == "increlora" and self.init != "default",
             f"recover.lora.ranks: increlora and init: {self.init}", "components that grow begin at random"),
            (self.ranks == "increlora" and self.dora, "recover.lora.ranks: increlora and dora",
             "peft has no rows' lengths beside components that grow"),
            (self.ranks == "increlora" and self.rslora, "recover.lora.ranks: increlora and rslora",
             "the scale does not depend on ranks that grow"),
            (self.ranks == "increlora" and self.experts, "recover.lora.ranks: increlora and experts",
             "peft grows no parts of fused weights"),
        )  # fmt: skip
        for wrong, what, why in faults:
            if wrong:
                raise ValueError(f"{what} do not go together, since {why}; leave one of them out")
        return self


class PerpConfig(Section):
    """Recovery by `perp`: few parameters that move much."""

    train: Annotated[tuple[Literal["biases", "norms", "head", "adapters"], ...], Field(min_length=1)] = (
        "biases",
        "norms",
        "head",
        "adapters",
    )
    """Parameters that are trained: the model's biases and norms, an adapter on the language model head where
    that is not tied to the embeddings, and the adapters of `lora`, by its settings."""


class BudgetConfig(Section):
    """Limits on recovery training, over all rungs of a ladder; the first one that is reached ends it."""

    seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds of training on this machine; how many steps they hold is measured before the first one."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens to train on."""
    money: Annotated[float, Field(gt=0.0)] | None = None
    """Limit on the price of training, at `money_per_hour`."""
    money_per_hour: Annotated[float, Field(gt=0.0)] | None = None
    """Price of an hour of this machine."""

    @property
    def limit_seconds(self) -> float | None:
        """Seconds that may be spent; None where only tokens count."""
        paid = None if self.money is None else 3600 * self.money / (self.money_per_hour or 1.0)
        given = [one for one in (self.seconds, paid) if one is not None]
        return min(given) if given else None

    @model_validator(mode="after")
    def _says_something(self) -> BudgetConfig:
        if (self.money is None) != (self.money_per_hour is None):
            raise ValueError("recover.budget needs money and money_per_hour together; give both or neither")
        if self.tokens is None and self.limit_seconds is None:
            raise ValueError("recover.budget is empty; give seconds, tokens, or money with money_per_hour")
        return self


AUTO_LADDER = ("distill", "distill", "distill")
"""Rungs of `recover.ladder: auto` where a gate may end the climb; without one it is the last alone."""


class DevicesConfig(Section):
    """The processes that train together, each on a device of its own."""

    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that share each step's examples out; auto: one for each GPU, one alone on a CPU."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole model; fsdp: its share of weights, gradients and moments."""

    @property
    def shares(self) -> bool:
        """Whether processes hold shares of the weights."""
        return self.sharding == "fsdp" and self.processes not in (1, "auto")

    def on_machine(self, gpus: int) -> Self:
        """With the number of processes where so many GPUs train, 0: a CPU; one process alone holds all."""
        processes = max(1, gpus) if self.processes == "auto" else self.processes
        sharding = "ddp" if processes == 1 else self.sharding
        return self.model_copy(update={"processes": processes, "sharding": sharding})


class RecoverConfig(Section):
    """Training after pruning, on selected rows, running text, or both."""

    method: str = "lora"
    """lora; full: all weights; distill: all weights, by the dense model's words alone; perp: biases, norms
    and adapters; reconstruct: part by part against the dense model (`resprout methods`)."""
    ladder: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Methods one after another in place of `method`, each from what the one before left, until the gate is
    met, the budget is spent, or a rung no longer pays; auto: what was found best. Needs `budget`."""
    budget: BudgetConfig | None = None
    """Limits on training, in place of epochs and tokens."""
    text: tuple[RecoveryText, ...] = ()
    """Running text to train on, beside the selected rows or without any."""
    rows_weight: Annotated[float, Field(ge=0.0)] | None = None
    """Share of the training tokens that are rows, beside the weights in `text`."""
    seq_len_tokens: Annotated[int, Field(ge=16)] = 512
    """Tokens of a window of text, which runs on over documents with a blank line between them, and of a
    packed sequence of short examples (on a CPU at most 256)."""
    pack: bool | Literal["auto"] = "auto"
    """true: several examples in a sequence, each seeing itself alone; false: padded beside others of its
    length; auto: true but for training in float32 on a CPU, where attention computes what it masks."""
    loss_on: Literal["responses", "all"] = "responses"
    """Tokens of rows that are learned; of text it is all."""
    rank: Annotated[int, Field(ge=1)] = 8
    """lora: rank of the adapters."""
    alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """lora: their scale; the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """lora: dropout in front of the adapters."""
    lora: LoraConfig = Field(default_factory=LoraConfig)
    """lora: variants of the adapters."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of layers, AdamW for the rest, by one rate; slow on a processor
    without 16-bit instructions."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    """Peak learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the steps in which the rate rises; then it falls to zero along a cosine."""
    epochs: Annotated[float, Field(gt=0.0)] = 1.0
    """Passes over the token budget and the text; steps = epochs * tokens / batch_tokens, whatever selects."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens to train on, in place of epochs."""
    batch_tokens: Annotated[int, Field(ge=64)] = 2048
    """Tokens in a step, padding not counted."""
    micro_batch_tokens: Annotated[int, Field(ge=64)] | Literal["auto"] = "auto"
    """Places computed at once, with padding; auto: what memory holds on CUDA, half a step on a CPU."""
    precision: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """Dtype that products run in while weights are trained; model: model.dtype."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass: less memory, about a third more time."""
    distill_weight: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = 0.0
    """Share of the loss that is distillation from the dense model; the rest is cross-entropy. Left out: 1 for
    the method distill, 0 for others. auto: the more, the less of the pool was selected."""
    distill_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the distillation loss."""
    distill: DistillConfig = DistillConfig()
    """How distillation works where distill_weight is above 0."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    """Gradients are clipped to this norm."""
    held_out_ratio: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05
    """Share of the tokens that are not trained on but looked at as training goes; at most 8,192 of them."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Looks at the held-out slice without a better one after which training stops, with the best weights."""
    continued: Annotated[float, Field(gt=1.0)] | None = None
    """Train the recovered model on, by a training of its own, up to so many times the tokens in all; what
    comes before is not done again (`resprout run --continue-recovery 2x`)."""
    checkpoint_minutes: Annotated[float, Field(gt=0.0)] = 10.0
    """Minutes between checkpoints, from which a run that was killed goes on."""
    devices: DevicesConfig = Field(default_factory=DevicesConfig)
    """Training on several devices."""
    perp: PerpConfig = Field(default_factory=PerpConfig)
    """Settings of the method perp, which trains by those above."""
    reconstruct: ReconstructConfig = Field(default_factory=ReconstructConfig)
    """Settings of the method reconstruct, which uses none of those above."""

    @property
    def part(self) -> tuple[float, float]:
        """The shares of all steps at which training begins and ends."""
        return 0.0, 1.0

    @property
    def skip_tokens(self) -> int:
        """Tokens that were trained on before, by rungs that came first."""
        return 0

    @model_validator(mode="before")
    @classmethod
    def _distillation_distils(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("method") != "distill":
            return data
        if data.get("distill_weight", 1.0) == 0:
            raise ValueError(
                "recover.method is distill but distill_weight is 0; drop it, or give method: full"
            )
        return {"distill_weight": 1.0, **data}

    @model_validator(mode="after")
    def _own_words_need_a_teacher(self) -> RecoverConfig:
        if self.distill.on_policy and not self.distills and self.ladder is None:
            raise ValueError(
                "recover.distill.on_policy is given but distill_weight is 0, so that no one judges what the "
                "student writes; give distill_weight, or method: distill"
            )
        if self.distill.on_policy and self.devices.processes not in (1, "auto"):
            raise ValueError(
                "recover.distill.on_policy lets the student write between steps, which one process does; "
                "give recover.devices.processes: 1"
            )
        return self

    @model_validator(mode="after")
    def _muon_needs_whole_matrices(self) -> RecoverConfig:
        if self.optimizer == "muon" and self.devices.sharding == "fsdp":
            raise ValueError(
                "recover.optimizer is muon, which needs whole matrices, but recover.devices.sharding is "
                "fsdp; give optimizer: adamw, or sharding: ddp"
            )
        return self

    @model_validator(mode="after")
    def _growth_needs_whole_matrices(self) -> RecoverConfig:
        if self.lora.ranks == "increlora" and self.devices.sharding == "fsdp":
            raise ValueError(
                "recover.lora.ranks is increlora, which scores whole matrices, but recover.devices.sharding "
                "is fsdp; give ranks: cfsp, or sharding: ddp"
            )
        return self

    @model_validator(mode="after")
    def _budget(self) -> RecoverConfig:
        if self.ladder is not None and self.budget is None:
            raise ValueError("recover.ladder needs recover.budget, e.g. budget: {seconds: 1800}")
        if self.budget is not None and self.tokens is not None:
            raise ValueError("recover.tokens and recover.budget both say how long; give budget.tokens alone")
        if self.budget is not None and self.budget.tokens is None and self.taught_from_disk:
            raise ValueError(
                "recover.distill.teacher is disk, which must know how many tokens it is asked about; give "
                "budget.tokens, or teacher: online"
            )
        return self

    @model_validator(mode="after")
    def _continues(self) -> RecoverConfig:
        if self.continued is None:
            return self
        if self.methods[-1] == "reconstruct":
            raise ValueError(
                "recover.continued goes on with the last method, but reconstruct has no number of tokens to "
                "multiply; give another method, or leave continued out"
            )
        if self.taught_from_disk:
            raise ValueError(
                "recover.continued needs the dense model's words on further tokens, which the file of "
                "recover.distill.teacher: disk does not have; give teacher: online"
            )
        return self

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that may run, in their order."""
        return AUTO_LADDER if self.ladder == "auto" else self.ladder or (self.method,)

    @property
    def distills(self) -> bool:
        """Whether there is a teacher."""
        return self.distill_weight == "auto" or self.distill_weight > 0

    @property
    def taught_from_disk(self) -> bool:
        """Whether the dense model's words are read from a file."""
        return self.distills and self.distill.teacher == "disk" and self.method != "reconstruct"

    @model_validator(mode="after")
    def _patience_needs_a_slice(self) -> RecoverConfig:
        if self.patience is not None and not self.held_out_ratio:
            raise ValueError(
                "recover.patience is given but held_out_ratio is 0, so that nothing says what is better; "
                "give held_out_ratio, e.g. 0.05"
            )
        return self

    def on_machine(self, gpus: int) -> Self:
        """With the number of processes, which decides the order of sums; reconstruct has one anyway."""
        if self.method == "reconstruct":
            return self
        return self.model_copy(update={"devices": self.devices.on_machine(gpus)})

    def key_data(self) -> dict[str, Any]:
        """With the weights of the text, which itself is an input, and without what changes no byte."""
        entering = super().key_data()
        entering.pop("checkpoint_minutes")
        # What comes behind a recovery does not change it.
        entering.pop("continued")
        return {**entering, "text": [one.weight for one in self.text]}


class Rung(RecoverConfig):
    """One method of a ladder: its place, and its share of the budget."""

    number: Annotated[int, Field(ge=1)] = 1
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    trained_tokens: int = 0

    @property
    def skip_tokens(self) -> int:
        return self.trained_tokens


class Continuation(RecoverConfig):
    """The training that goes on behind a finished recovery, by the last of its methods."""

    trained_tokens: int = 0

    @property
    def skip_tokens(self) -> int:
        return self.trained_tokens

    def key_data(self) -> dict[str, Any]:
        """With how far it goes."""
        return {**super().key_data(), "continued": self.continued}


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
    """The method's own settings (`resprout methods NAME` lists them)."""


class QuantizeConfig(Section):
    """Files of few bits made of the final model; each is evaluated and measured as the file that ships."""

    formats: Annotated[FormatNames, Field(min_length=1)]
    """gguf:TYPE, by llama.cpp's own quantiser (Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, F16, ...), with
    gguf:TYPE:TYPE embedding and output matrix in the second type (gguf:Q4_0:Q5_0);
    compressed-tensors:TYPE, for transformers and vLLM (W8A16, W4A16, W4A16-G64, W4A16-G32, W8A8, FP8);
    torchao:TYPE, for transformers with torchao (INT8, INT8-DYNAMIC, which rounds inputs too);
    onnx:TYPE, for ONNX Runtime, in whole or half precision (F32, F16)."""
    importance: bool = True
    """gguf: weigh errors by how large input channels are on the calibration samples (importance matrix)."""
    rounding: Literal["nearest", "gptq"] = "gptq"
    """compressed-tensors: each weight to its nearest value, or GPTQ on the calibration samples."""


QUANTIZED, SOURCE_FILE = "quantized", "source_file"


class CompareConfig(Section):
    """Plain alternatives that are judged beside the files of few bits, by the same evaluator."""

    baselines: Annotated[FormatNames, Field(min_length=1)] = (QUANTIZED,)
    """quantized: the dense model in each type that ships and in the three next smaller ones, where its format
    has them (of gguf types of few bits a smaller embedding comes first); a format such as gguf:Q2_K: the
    dense model in that; source_file: the GGUF file that the run began with."""

    @field_validator("baselines")
    @classmethod
    def _known(cls, baselines: tuple[str, ...]) -> tuple[str, ...]:
        for one in baselines:
            if one not in (QUANTIZED, SOURCE_FILE) and ":" not in one:
                raise ValueError(
                    f"compare.baselines holds {one}; give {QUANTIZED}, {SOURCE_FILE}, or a format of few "
                    "bits with its type, say gguf:Q2_K"
                )
        return baselines


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


class EvaluationTask(Section):
    """One lm-eval task on rows of yours."""

    task: str
    """A YAML of configs/evaluation without its ending (`resprout methods`), `lm_eval:NAME` for a task of
    lm-eval, or the path of your own lm-eval YAML."""
    data: DataSource
    """The rows; columns as the task's templates name them."""
    name: Name = Field(default=LEFT_OUT, json_schema_extra=_without_default)
    """Name in metrics. Left out: the task's."""
    capability: Name | None = None
    """Capability that the task tests, by which losses are reported: arithmetic, knowledge, ... Left out: that
    of the task's YAML, else its name."""
    few_shot: Annotated[int, Field(ge=0)] | None = None
    """Solved examples in front of each item. Left out: as many as the task's YAML says; in zero_shot none."""
    examples: DataSource | None = None
    """The rows that those are drawn from. Left out: the task's own examples, or its other rows."""

    @model_validator(mode="before")
    @classmethod
    def _more_than_a_name(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        known, ships = ", ".join(shipped_tasks()), given in shipped_tasks()
        ours = ships or given.endswith(ENDINGS) or given.startswith(LM_EVAL)
        task = given if ours else f"{given}.yaml"
        raise ValueError(
            f"a task needs a file with its questions, as none is fetched by its name; give {{task: {task}, "
            f"data: {{source: FILE}}}}, where task is one of {known}, lm_eval:NAME, or the path of your own "
            "lm-eval YAML"
        )

    @field_validator("name", mode="before")
    @classmethod
    def _own_name(cls, given: Any, info: ValidationInfo) -> Any:
        if given is not None:
            return given
        task = str(info.data.get("task", "task"))
        return PurePath(task).stem if task.endswith(ENDINGS) else task.removeprefix(LM_EVAL)

    def key_data(self) -> dict[str, Any]:
        """Without the task, whose settings and rows enter the key by their digest."""
        return {"name": self.name, "capability": self.capability, "few_shot": self.few_shot}


LM_EVAL = "lm_eval:"
"""Begins the names of lm-eval's own tasks."""


class SuiteConfig(Section):
    """Tasks through lm-eval, with the settings that they share."""

    tasks: Annotated[tuple[EvaluationTask, ...], Field(min_length=1)]
    """Which tasks, on which files."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many items of each task."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Requests in a batch."""
    chat: bool = False
    """Put prompts through the model's chat template, examples as turns of a conversation."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens after which a written answer is cut, which is counted. Left out: the task's own number, else
    1,024; at most half of what the model takes."""


Suite = Annotated[
    SuiteConfig, BeforeValidator(shipped_suite, json_schema_input_type=SuiteConfig | str | dict[str, Any])
]


Prompt = Annotated[str, Field(min_length=1, max_length=2000)]
PROMPTS = (
    "Which planet of the solar system is the largest?",
    "A box holds 3 rows of 8 eggs. 5 of the eggs break. How many are whole?",
    "List three things to check before going on a long bicycle ride.",
    "Continue this story: The lighthouse keeper climbed the stairs, and at the top",
    "My friend forgot my birthday and I feel a bit hurt. What could I say to them?",
)


class EvaluateConfig(Section):
    """Scores of dense, pruned and recovered by the same evaluator."""

    perplexity: PerplexityConfig
    """Perplexity and divergence from the dense model."""
    zero_shot: SuiteConfig | None = None
    """Accuracies without examples, as a suite that is written here; left out where absent."""
    suites: tuple[Suite, ...] = ()
    """Suites by name (`resprout methods`) or by the path of a YAML with these keys; {suite: NAME, limit: 100}
    changes some."""
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=20)] = PROMPTS
    """Prompts that every model answers greedily, for people to compare; [] leaves them out."""
    trust_task_code: bool = False
    """Run the Python functions that task files of your own name; leave off unless you read that code. Plan,
    report and lineage name those files."""

    @property
    def placed_suites(self) -> dict[str, SuiteConfig]:
        """All suites by their places in the section."""
        first = {} if self.zero_shot is None else {"zero_shot": self.zero_shot}
        return first | {f"suites.{index}": suite for index, suite in enumerate(self.suites)}

    @property
    def tasks(self) -> dict[str, EvaluationTask]:
        """All tasks by their places in the section."""
        return {
            f"{place}.tasks.{index}": task
            for place, suite in self.placed_suites.items()
            for index, task in enumerate(suite.tasks)
        }

    @model_validator(mode="after")
    def _zero_shot_has_no_examples(self) -> EvaluateConfig:
        for task in self.zero_shot.tasks if self.zero_shot is not None else ():
            if task.few_shot or task.examples is not None:
                raise ValueError(
                    f"zero_shot holds {task.name} with examples; move the task into a suite (evaluate.suites)"
                )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluateConfig:
        names = [task.name for task in self.tasks.values()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the task {twice[0]} is given twice; give one of them another name: NAME")
        return self


class Lengths(NamedTuple):
    """A point at which speeds are measured."""

    prefill_tokens: int
    decode_tokens: int
    batch_size: int

    @property
    def positions(self) -> int:
        """Tokens of a sequence at its end."""
        return self.prefill_tokens + self.decode_tokens


class SpeedPoint(Section):
    """A further point of the speeds; what is left out is as in `measure`."""

    prefill_tokens: Annotated[int, Field(ge=8)] | None = None
    """Length of the prompt."""
    decode_tokens: Annotated[int, Field(ge=2)] | None = None
    """Tokens generated greedily after it."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Sequences at a time."""


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
    grid: tuple[SpeedPoint, ...] = ()
    """Further points, measured in the same rounds: [{prefill_tokens: 128}, {batch_size: 4}]. Peak memory is
    that of all points together."""

    @property
    def points(self) -> tuple[Lengths, ...]:
        """The section's own lengths, then those of the grid."""
        main = Lengths(self.prefill_tokens, self.decode_tokens, self.batch_size)
        others = (one.model_dump(exclude_none=True) for one in self.grid)
        return (main, *(main._replace(**given) for given in others))

    @model_validator(mode="after")
    def _points_differ(self) -> MeasureConfig:
        twice = next((one for one in self.points if self.points.count(one) > 1), None)
        if twice is not None:
            shown = ", ".join(f"{key}: {value}" for key, value in twice._asdict().items())
            raise ValueError(f"measure.grid holds {{{shown}}} a second time; give each point once")
        return self


class DraftConfig(Section):
    """The last model as a draft for the dense one, which checks all that it proposes (assisted generation).

    The text is the dense model's; what counts is how much is accepted, and whether the two together are
    faster than the dense model alone.
    """

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=20)] = PROMPTS
    """Prompts that are continued greedily, through the chat template where there is one."""
    new_tokens: Annotated[int, Field(ge=8)] = 64
    """At most this many tokens behind each prompt."""
    proposed_tokens: Annotated[int, Field(ge=1)] = 5
    """Tokens that the draft proposes at a time."""
    repeats: Annotated[int, Field(ge=3)] = 6
    """Rounds in which all prompts are continued with the draft and without it; intervals are of 95 % from 6
    on."""


class DropBound(Section):
    """How much of an accuracy may be lost; a number alone is `absolute`."""

    absolute: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Dense accuracy - accuracy of the model, on the same items."""
    relative: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """The same as a share of the dense accuracy."""
    margin: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Passes only where the items show that the drop is below it: a one-sided interval ends below it."""
    error_rate: Annotated[float, Field(gt=0.0, le=0.5)] = 0.05
    """margin: share of models with a drop of the whole margin that may pass by chance."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_absolute(cls, given: Any) -> Any:
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        return {"absolute": given} if is_number else given

    @model_validator(mode="after")
    def _one_form(self) -> DropBound:
        forms = ("absolute", "relative", "margin")
        given = [name for name in forms if getattr(self, name) is not None]
        # A recorded config holds every default.
        other_rate = self.error_rate != type(self).model_fields["error_rate"].default
        if len(given) != 1 or (other_rate and given != ["margin"]):
            raise ValueError(
                "give a number, which is the absolute drop, {relative: 0.1}, or {margin: 0.03, error_rate: "
                "0.05}"
            )
        return self


class GateConfig(Section):
    """Bounds relative to the dense model, measured in the same run."""

    of: FormatName | None = None
    """The quantized file that must pass, say gguf:Q4_K_M; absent: the model that it is made of."""
    max_perplexity_ratio: Annotated[float, Field(gt=0.0)] | None = None
    """Recovered perplexity / dense perplexity."""
    max_kl_nats: Annotated[float, Field(gt=0.0)] | None = None
    """Mean KL(dense || recovered) in nats a token."""
    min_accuracy_kept: Annotated[float, Field(gt=0.0)] | None = None
    """Mean recovered accuracy / mean dense accuracy over the multiple-choice tasks without examples."""
    max_params_ratio: Ratio | None = None
    """Recovered parameters / dense parameters."""
    max_file_ratio: Annotated[float, Field(gt=0.0)] | None = None
    """Bytes of the weights that ship / bytes of the source's files."""
    max_drop: dict[str, DropBound] = Field(default_factory=dict)
    """By capability or task the largest drop of its accuracy: {arithmetic: 0.05, piqa: {margin: 0.03}}."""

    @model_validator(mode="after")
    def _some_bound(self) -> GateConfig:
        bounds = [name for name in type(self).model_fields if name != "of"]
        if all(getattr(self, name) in (None, {}) for name in bounds):
            raise ValueError(f"the gate has no bound; give at least one of {', '.join(bounds)}")
        return self


class GateOfRung(GateConfig):
    """The gate before a rung of a ladder; its artifact says only whether it passed.

    The rung reads that artifact, so its cache key holds no scores and no bounds: with other evaluation sets
    or bounds and the same outcome, the rung is found in the cache.
    """


class ExportConfig(Section):
    """Formats to write; each is loaded again by its stock tool before it counts."""

    formats: FormatNames = ("hf",)
    """Formats to write (`resprout methods`). Left out: hf, or hf_layouts where prune.layout is per_layer, and
    what quantize makes."""
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


class PushConfig(Section):
    """The repository of the Hugging Face Hub to which a run that passed its gate brings its exports.

    The token is HF_TOKEN in the environment. Source model and data need licences that are known and let
    others have what is made of them.
    """

    to: Annotated[Address, Field(pattern=r"^hf://[\w.-]+/[\w.-]+$")]
    """hf://org/name; made where it is not there."""
    formats: FormatNames = ()
    """Formats of export.formats, the first at the root, others in a folder of their name. Left out: all."""
    private: bool = True
    """Whether a repository that is made is private."""


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
    quantize: QuantizeConfig | None = None
    """Files of few bits; absent: none."""
    compare: CompareConfig | None = None
    """Alternatives to the files of few bits; absent: none."""
    evaluate: EvaluateConfig
    """Scores."""
    measure: MeasureConfig | None = MeasureConfig()
    """Speed and memory; null leaves them out."""
    draft: DraftConfig | None = None
    """The last model as a draft for the dense one; absent: not tried."""
    gate: GateConfig | None = None
    """Bounds; absent: everything passes, and the report says so."""
    export: ExportConfig = ExportConfig()
    """Formats."""
    registration: RegisterConfig | None = Field(default=None, alias="register")
    """Model registry; absent: nothing is registered."""
    push: PushConfig | None = None
    """Model hub; absent: nothing is pushed."""
    infra: InfraConfig = InfraConfig()
    """Where it runs."""

    @model_validator(mode="before")
    @classmethod
    def _round_to_blocks(cls, given: Any) -> Any:
        """Widths that the formats of few bits can hold, in place of auto."""
        prune = given.get("prune") if isinstance(given, dict) else None
        if not isinstance(prune, dict) or prune.get("round_to") != AUTO:
            return given
        quantize = given.get("quantize")
        formats = quantize.get("formats") if isinstance(quantize, dict) else ()
        names = [str(name) for name in formats] if isinstance(formats, list | tuple) else []
        rounded = multiple_of(names)
        others = {key: value for key, value in prune.items() if key != "round_to"}
        return {**given, "prune": others if rounded is None else {**others, "round_to": rounded}}

    @field_validator("export")
    @classmethod
    def _formats_of_the_layout(cls, export: ExportConfig, info: ValidationInfo) -> ExportConfig:
        prune, quantize = info.data.get("prune"), info.data.get("quantize")
        made = quantize.formats if quantize is not None else ()
        if "formats" in export.model_fields_set or prune is None:
            few_bits = [name for name in export.formats if name.partition(":")[0] in WITH_TYPES]
            lacking = [name for name in few_bits if name not in made]
            if lacking:
                raise ValueError(
                    f"export.formats holds {lacking[0]}, which quantize.formats does not make; name it there"
                )
            return export
        whole = "hf" if prune.layout == "uniform" else "hf_layouts"
        return export.model_copy(update={"formats": (whole, *made)})

    @model_validator(mode="after")
    def _stages_that_need_each_other(self) -> RunConfig:
        if self.select is not None and self.recover is None:
            raise ValueError(
                "select is given without recover, which trains on what it selects; give both or neither"
            )
        if self.recover is not None and self.select is None and not self.recover.text:
            raise ValueError(
                "recover has nothing to train on; give select, which chooses rows, or recover.text, or both"
            )
        if self.calibrate.method != "self_generated" and not self.calibrate.text:
            raise ValueError(
                f"calibrate.method is {self.calibrate.method} but calibrate.text is empty; name at least "
                "one source"
            )
        wanted = ("min_accuracy_kept", "max_drop") if self.gate is not None else ()
        for name in (one for one in wanted if getattr(self.gate, one)):
            if not self.evaluate.tasks:
                raise ValueError(
                    f"gate.{name} needs accuracies; give evaluate.zero_shot or evaluate.suites, or drop the "
                    "bound"
                )
        group = int(self.sparsify.pattern.partition(":")[2]) if self.sparsify else 1
        cut = not self.prune.target.whole and {"ffn", "hidden"} & set(self.prune.units)
        if self.prune.round_to % group and cut:
            raise ValueError(
                f"sparsify.pattern takes weights in groups of {group}, which prune.round_to "
                f"{self.prune.round_to} does not keep whole; give a multiple of {group}"
            )
        made = self.quantize.formats if self.quantize is not None else ()
        if self.gate is not None and self.gate.of is not None and self.gate.of not in made:
            raise ValueError(
                f"gate.of is {self.gate.of}, which quantize.formats does not make; name it there"
            )
        if self.compare is not None and self.quantize is None:
            raise ValueError(
                "compare is about files of few bits, but quantize is left out; give quantize.formats or drop "
                "compare"
            )
        if self.registration is not None and not self.export.formats:
            raise ValueError(
                "register needs an export, but export.formats is empty; set register: null or name a format"
            )
        self._selections_can_be_recovered()
        if self.push is not None:
            lacking = [name for name in self.push.formats if name not in self.export.formats]
            if lacking or not self.export.formats:
                raise ValueError(
                    f"push needs {lacking[0] if lacking else 'an export'}, which export.formats does not "
                    "hold; name it there"
                )
        return self

    def _selections_can_be_recovered(self) -> None:
        """ValueError where `select` asks for trainings that `recover` and `prune` do not give."""
        if self.select is None:
            return
        tried = any(one.method == "paser" and one.paser.pilot_tokens for one in self.select.arms.values())
        asked = {"select.compare": bool(self.select.compare), "select.paser.pilot_tokens": tried}
        for name in (name for name, is_given in asked.items() if is_given):
            if self.prune.schedule != "one_shot":
                raise ValueError(
                    f"{name} recovers a model that one cut has pruned, which prune.schedule "
                    f"{self.prune.schedule} does not make; give one_shot, or drop {name}"
                )
        if not self.select.compare or self.recover is None:
            return
        budget = self.recover.budget
        apart = {
            "recover.ladder": self.recover.ladder is not None,
            "recover.continued": self.recover.continued is not None,
            "recover.distill.teacher: disk": self.recover.taught_from_disk,
            "recover.budget in seconds or money": budget is not None and budget.limit_seconds is not None,
        }
        for name in (name for name, is_given in apart.items() if is_given):
            raise ValueError(
                f"select.compare recovers each selection by one training on as many tokens, which {name} is "
                "not; leave out one of the two"
            )

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
