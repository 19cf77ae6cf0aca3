"""Rows like what the model is for, which `select.capabilities` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resprout.configs.errors import BadInput
from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models.load import load_tokenizer
from resprout.tasks.select.rows import FILE, rows_by_id


class Targets(NamedTuple):
    """The rows, and their tokens."""

    rows: list[dict[str, Any]]
    encoded: list[Encoded]

    @property
    def ids(self) -> list[str]:
        """Of the rows."""
        return [row["id"] for row in self.rows]


def read_targets(job: Job[SelectConfig], inputs: Mapping[str, Path]) -> Targets:
    """The rows of the input `targets`, in the order of their ids."""
    rows = list(rows_by_id(inputs["targets"] / FILE))
    tokenizer = load_tokenizer(inputs["dense"], job.trust_remote_code)
    try:
        encoded = encode_rows(tokenizer, rows, job.config.template, job.config.max_len_tokens)
    except BadInput as error:
        raise BadInput(f"select.capabilities.rows: {error}") from error
    return Targets(rows, encoded)
