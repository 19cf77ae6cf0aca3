"""The tokenizer of a GGUF file: its tokens, their kinds, and what llama.cpp needs to split text as they were.

llama.cpp has byte-level BPE ("gpt2") with a named way to split text before it, and SentencePiece's BPE
("llama"), which joins the pair whose joined token has the highest score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import SpecialVocab, TokenType

from resprout.configs.errors import BadInput

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPLITS = {
    "llama-bpe": (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}",),
    "smollm": ("digits", "bytes"),
    "gpt-2": ("bytes",),
}
"""How text is split before byte-level BPE, by llama.cpp's name: expressions, single digits, GPT-2's way."""
UNUSED = "[PAD{}]"
"""Text of a row of the embeddings that no token has."""


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp calls the tokenizer, and for each row of the embeddings a token and its kind."""

    model: str
    split: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None
    space_prefix: bool

    def write(self, writer: GGUFWriter, folder: Path) -> None:
        """Add it to a file, with merges, special tokens and chat template from the model's `folder`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.space_prefix)
        merges = self.scores is None
        SpecialVocab(folder, load_merges=merges, n_vocab=len(self.tokens)).add_to_gguf(writer, quiet=True)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer for embeddings of so many rows.

    Raises:
        BadInput: llama.cpp has no tokenizer of this kind, or no name for how it splits text.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise BadInput(
            f"a GGUF file cannot hold a tokenizer of type {model['type']}; llama.cpp reads byte-level BPE "
            "and SentencePiece's BPE: export hf instead"
        )
    names = dict(enumerate([UNUSED.format(row) for row in range(rows)]))
    kinds = dict.fromkeys(range(rows), int(TokenType.UNUSED))
    for token, row in model["vocab"].items():
        names[row], kinds[row] = token, int(TokenType.NORMAL)
    bytes_fall_back = bool(model.get("byte_fallback"))
    if bytes_fall_back:
        for byte in range(256):
            if (row := model["vocab"].get(f"<0x{byte:02X}>")) is not None:
                kinds[row] = int(TokenType.BYTE)
    if (unknown := model["vocab"].get(model.get("unk_token"))) is not None and bytes_fall_back:
        kinds[unknown] = int(TokenType.UNKNOWN)
    for added in described["added_tokens"]:
        names[added["id"]] = added["content"]
        special = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        kinds[added["id"]] = int(special)
    beyond = sorted(row for row in names if row >= rows)
    if beyond:
        raise BadInput(f"the tokenizer has token {beyond[-1]}, but the model's embeddings {rows} rows")
    tokens, found = [names[row] for row in range(rows)], [kinds[row] for row in range(rows)]
    if bytes_fall_back:
        prefix = _space_prefix(described)
        return Vocabulary("llama", "default", tokens, found, _scores(model, tokens), prefix)
    return Vocabulary("gpt2", _split(described["pre_tokenizer"]), tokens, found, None, False)


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """A score for each token that orders them as the merges do: the later a merge, the lower."""
    order: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        order.setdefault(left + right, rank)
    last = len(order)
    return [-float(order.get(token, last)) for token in tokens]


def _space_prefix(described: Mapping[str, Any]) -> bool:
    """Whether a space is put in front of a text."""
    parts = _parts(described.get("normalizer"), "normalizers")
    parts += _parts(described.get("pre_tokenizer"), "pretokenizers")
    return any(
        part["type"] == "Prepend" or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )


def _split(pre_tokenizer: Mapping[str, Any] | None) -> str:
    found = []
    for part in _parts(pre_tokenizer, "pretokenizers"):
        if part["type"] == "ByteLevel":
            found += ["bytes"] if part.get("use_regex", True) else []
        elif part["type"] == "Digits" and part.get("individual_digits"):
            found.append("digits")
        elif part["type"] == "Split":
            found.append(str(part["pattern"].get("Regex") or part["pattern"].get("String")))
        else:
            found.append(str(part["type"]))
    for name, parts in SPLITS.items():
        if tuple(found) == parts:
            return name
    raise BadInput(
        f"the tokenizer splits text in a way that has no name here for llama.cpp ({', '.join(found)[:200]}); "
        "export hf instead"
    )


def _parts(described: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if described is None:
        return []
    return list(described[name]) if described["type"] == "Sequence" else [described]
