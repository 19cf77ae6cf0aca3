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

from resprout.tasks.gguf.limits import check_tokenizer
from resprout.tasks.gguf.splits import KEPT, parts_of, split_of

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

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
    adds_bos: bool

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
        special = SpecialVocab(folder, load_merges=merges, n_vocab=len(self.tokens))
        # Left out, it is llama.cpp's choice for the split: true of llama-bpe and tekken.
        special.add_special_token["bos"] = self.adds_bos
        special.add_to_gguf(writer, quiet=True)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer for embeddings of so many rows.

    Raises:
        BadInput: llama.cpp has no tokenizer of this kind, or no name for how it splits text.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    check_tokenizer(described, rows)
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
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    tokens, found = [names[row] for row in range(rows)], [kinds[row] for row in range(rows)]
    if bytes_fall_back:
        prefix = _space_prefix(described)
        return Vocabulary("llama", "default", tokens, found, _scores(model, tokens), prefix, adds_bos)
    split = split_of(described, tokenizer.init_kwargs.get(KEPT))
    return Vocabulary("gpt2", split, tokens, found, None, False, adds_bos)


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
    parts = parts_of(described.get("normalizer"), "normalizers")
    parts += parts_of(described.get("pre_tokenizer"), "pretokenizers")
    return any(
        part["type"] == "Prepend" or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )
