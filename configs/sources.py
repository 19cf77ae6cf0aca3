"""Sections that name a source: the model, running text, instruction rows."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from resprout.configs.infrastructure import without_credentials
from resprout.configs.section import Percent, Section


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
    trust_remote_code: bool = False
    """Run Python code that comes with the model; leave off unless you read that code."""
    allow_pickle: bool = False
    """Convert pickled weights by transformers' weights-only loader, in a child process."""
    licence: str | None = None
    """Licence of the source model, recorded in its lineage; read from the model's own files where absent."""


class DataSource(Section):
    """A file or data set, and which of its rows are taken."""

    enters_key: ClassVar[bool] = False

    source: Address
    """Local path, package://module/path, s3://bucket/key, or hf-dataset://org/name[/config][@revision]#split."""
    format: Literal["auto", "jsonl", "json", "parquet", "csv", "text", "arrow"] = "auto"
    """File format; auto goes by the name's ending (.gz allowed)."""
    where: str | None = None
    """Jinja expression over the row's columns; rows for which it is false are left out."""
    hash_percent: tuple[Percent, Percent] = (0, 100)
    """Keep rows whose sha256 of `hash_of` modulo 100 lies in [low, high): a split that no order changes."""
    hash_of: str | None = None
    """Jinja template of what is hashed; default: the text, or instruction, input and output together."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many rows, drawn with the run's seed."""
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
    """Jinja template over the row's columns that renders one document."""


class RowSource(DataSource):
    """Instruction rows in Alpaca form, rendered from any columns by Jinja templates."""

    instruction: str = "{{ instruction }}"
    """Template of the task that the row sets."""
    input: str = "{{ input | default('') }}"
    """Template of the material that the task is about; may be empty."""
    output: str = "{{ output }}"
    """Template of the answer that the model learns."""
    category: str = "{{ category | default('') }}"
    """Template of a label that reports group by; never used for choosing."""
