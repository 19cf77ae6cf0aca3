"""Examples of a recovery: selected rows and windows of plain text as tokens, in a file mapped to memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.data.encodings import Encodings
from resprout.tasks.data.read import JOIN, read_rows
from resprout.tasks.data.template import Encoded, encode_rows
from resprout.tasks.models.load import load_tokenizer

CHUNK = 4096
"""Rows or documents that are tokenised at once."""
ROWS = "rows"
"""Name of the selected rows among the sources of examples."""


class Group(NamedTuple):
    """Consecutive examples of one source, from `begin` up to `end`; `name` is what people know it by."""

    name: str
    begin: int
    end: int


class Examples(Encodings):
    """Token sequences, read from the file that holds them when they are asked for; no loss is of a prompt."""

    groups: Sequence[Group] = ()
    _folder: TemporaryDirectory[str] | None = None

    @classmethod
    def written(cls, groups: Iterable[tuple[str, Iterable[Encoded]]]) -> Examples:
        """The examples of all groups, without those that have no response, through a file without a name."""
        folder = TemporaryDirectory(prefix="resprout-tokens-")
        path = Path(folder.name) / "tokens.bin"
        lengths, prompts, found = list[int](), list[int](), list[Group]()
        with path.open("wb") as file:
            for name, examples in groups:
                begin = len(lengths)
                for one in examples:
                    if one.response_ids:
                        np.asarray(one.prompt_ids + one.response_ids, dtype=np.int32).tofile(file)
                        lengths.append(len(one))
                        prompts.append(len(one.prompt_ids))
                found.append(Group(name, begin, len(lengths)))
        ends = np.cumsum(np.asarray(lengths, dtype=np.int64))
        ids: Any = np.memmap(path, np.int32, "r") if lengths else np.empty(0, np.int32)
        made = cls(ids, ends, np.asarray(prompts, dtype=np.int32))
        made.groups, made._folder = found, folder
        return made

    def first(self, index: int, everything: bool = False) -> int:
        """The place in an example of the first token that is predicted; no example's first token is."""
        return 1 if everything else max(1, int(self.prompts[index]))

    def digest(self) -> str:
        """sha256 over all tokens and where they begin, end, and are predicted from."""
        found = hashlib.sha256()
        for array in (self.ends, self.prompts, self.ids):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    def name(self, index: int) -> str:
        """An example as people find it: its source, and its number there from 1 on."""
        group = next(one for one in self.groups if one.begin <= index < one.end)
        return f"{group.name} {index - group.begin + 1}"


def read_examples(
    config: RecoverConfig, inputs: Mapping[str, Path], trust_remote_code: bool = False
) -> Examples:
    """The selected rows in the tokens that they were selected by, then the windows of each source of text.

    Raises:
        BadInput: nothing to train on, or the pruned model's tokenizer leaves no response token of any row.
    """
    tokenizer = load_tokenizer(inputs["pruned"], trust_remote_code)
    examples = Examples.written(_groups(config, inputs, tokenizer))
    if not len(examples):
        raise BadInput(
            "recovery has nothing to train on: the selection holds no row with an answer, and recover.text "
            "is empty; raise the budget of select, or give recover.text"
        )
    return examples


def _groups(
    config: RecoverConfig, inputs: Mapping[str, Path], tokenizer: Any
) -> Iterator[tuple[str, Iterable[Encoded]]]:
    """The examples of each source in turn."""
    if "selection" in inputs:
        yield ROWS, _rows(tokenizer, inputs["selection"])
    if "recovery_text" in inputs:
        documents = (row for _, row in read_rows(inputs["recovery_text"] / "text.jsonl"))
        for source, found in itertools.groupby(documents, lambda row: str(row.get("source", "text"))):
            yield source, windows(tokenizer, (str(row["text"]) for row in found), config.seq_len_tokens)


def _rows(tokenizer: Any, selection: Path) -> Iterator[Encoded]:
    summary = json.loads((selection / "summary.json").read_text(encoding="utf-8"))
    rows = (row for _, row in read_rows(selection / "selected.jsonl"))
    for chunk in iter(lambda: list(itertools.islice(rows, CHUNK)), []):
        yield from encode_rows(tokenizer, chunk, summary["template"], summary["max_len_tokens"])


def windows(tokenizer: Any, texts: Iterable[str], seq_len: int) -> Iterator[Encoded]:
    """Windows of `seq_len` tokens side by side over the documents, without prompt; the last may be shorter.

    Documents are joined by a blank line, as calibration and perplexity read text, and a window may run over
    the border of two. Each begins with the special tokens that the tokenizer puts in front of a text.
    """
    eos = tokenizer.eos_token_id
    front = [token for token in tokenizer("", add_special_tokens=True)["input_ids"] if token != eos]
    border = tokenizer(JOIN, add_special_tokens=False)["input_ids"]
    size, texts = seq_len - len(front), iter(texts)
    left, between = list[int](), list[int]()
    for chunk in iter(lambda: list(itertools.islice(texts, CHUNK)), []):
        for ids in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            left += between + ids
            between = border
            whole = len(left) - len(left) % size
            yield from (Encoded([], front + left[begin : begin + size]) for begin in range(0, whole, size))
            left = left[whole:]
    if len(left) > 1 or (left and front):
        yield Encoded([], front + left)
