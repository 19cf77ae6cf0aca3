"""A model's tokenizer and chat template as its files hold them; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.stored_json import parse_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these holds the vocabulary."""
NO_TOKENIZER = f"holds no tokenizer ({', '.join(TOKENIZERS)}); save the model's tokenizer beside its weights"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Names under which transformers keeps a tokenizer; they are copied byte for byte from model to model."""
JINJA, JSON = "chat_template.jinja", "chat_template.json"
SETTINGS = "tokenizer_config.json"
"""May hold the chat template as well."""
GGUF_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""Special tokens as a GGUF header and as chat templates name them."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the special tokens by the names under which it may use them."""

    text: str
    special_tokens: Mapping[str, str]


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of a model folder with these names are a tokenizer."""
    return any(name in names for name in TOKENIZERS)


def chat_template(files: Mapping[str, Path]) -> ChatTemplate | None:
    """The one that transformers takes of a model folder's files, by name; None where there is none.

    Raises:
        BadInput: chat_template.jinja is not UTF-8.
    """
    settings = _settings(files, SETTINGS)
    special = {key: _token(value) for key, value in settings.items() if key.endswith("_token") and value}
    if JINJA in files:
        try:
            text: Any = files[JINJA].read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{JINJA} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    else:
        text = _settings(files, JSON).get("chat_template") or settings.get("chat_template")
    if isinstance(text, list):
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
        text = named.get("default")
    return ChatTemplate(text, special) if text and isinstance(text, str) else None


def gguf_has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file with this metadata holds a vocabulary."""
    return bool(metadata.get("tokenizer.ggml.tokens"))


def gguf_chat_template(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The one in a GGUF file's metadata; special tokens, which stand there as numbers, by their names."""
    text = metadata.get("tokenizer.chat_template")
    special = {
        name: f"<{name}>" for key, name in GGUF_TOKENS.items() if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    return ChatTemplate(text, special) if text and isinstance(text, str) else None


def _settings(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """A JSON file's object, empty where it is not there or holds none."""
    try:
        found = parse_json(files[name].read_bytes(), name) if name in files else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)
