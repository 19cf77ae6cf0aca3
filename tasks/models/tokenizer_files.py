"""Whether a model's files hold a tokenizer and a chat template; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of these holds the vocabulary."""
NO_TOKENIZER = f"holds no tokenizer ({', '.join(TOKENIZERS)}); save the model's tokenizer beside its weights"
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
SETTINGS = "tokenizer_config.json"
"""May hold the chat template as well."""


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether files of a model folder with these names are a tokenizer."""
    return any(name in names for name in TOKENIZERS)


def has_chat_template(files: Mapping[str, Path]) -> bool:
    """Whether the files of a model folder, by name, hold a chat template."""
    if any(name in files for name in CHAT_TEMPLATES):
        return True
    if SETTINGS not in files:
        return False
    try:
        settings = json.loads(files[SETTINGS].read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def gguf_has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file with this metadata holds a vocabulary."""
    return bool(metadata.get("tokenizer.ggml.tokens"))


def gguf_has_chat_template(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file with this metadata holds a chat template."""
    return bool(metadata.get("tokenizer.chat_template"))
