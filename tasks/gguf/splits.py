r"""How text is split before byte-level BPE, in tokenizer.json and by llama.cpp's name (tokenizer.ggml.pre).

Expressions and names: llama.cpp, src/llama-vocab.cpp, at b11739. The name also sets whether a piece that is a
token as a whole is taken before any merge, as `ignore_merges` of tokenizer.json does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.models.tokenizer_files import SETTINGS

PRE = "tokenizer.ggml.pre"
KEPT = "gguf_split"
"""Key of tokenizer_config.json with the name that the GGUF file had from which the model came."""
DEFAULT = "default"
"""How llama.cpp splits where a file gives no name."""
DIGITS, BYTES = "digits", "bytes"
"""Single digits; GPT-2's expression, which byte-level BPE has built in."""
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"


@dataclass(frozen=True)
class Split:
    """The steps of a split: an expression, DIGITS or BYTES each; and names that llama.cpp treats alike."""

    steps: tuple[str, ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def pre_tokenizer(self) -> dict[str, Any]:
        """The object of tokenizer.json that splits so."""
        parts: list[dict[str, Any]] = []
        for step in self.steps:
            if step == DIGITS:
                parts.append({"type": "Digits", "individual_digits": True})
            elif step != BYTES:
                pattern = {"Regex": step}
                parts.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
        regex = BYTES in self.steps
        parts.append(
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}
        )
        return {"type": "Sequence", "pretokenizers": parts}


SPLITS: Mapping[str, Split] = {
    "llama-bpe": Split((_LLAMA3,), True, ("llama3", "llama-v3")),
    "dbrx": Split((_LLAMA3,), False, ("smaug-bpe",)),
    "qwen2": Split(
        (rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}",), False, ("deepseek-r1-qwen", "megrez", "stablelm2")
    ),
    "smollm": Split((DIGITS, BYTES), False, ("starcoder", "refact", "command-r", "codeshell", "exaone")),
    "gpt-2": Split((BYTES,), False, ("phi-2", "mpt", "olmo", "jais", "trillion")),
    DEFAULT: Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
"""Without tekken and gpt-4o, where b11739 splits letters from combining marks and transformers does not."""


def split_of(described: Mapping[str, Any], kept: str | None = None) -> str:
    """Return llama.cpp's name for how the tokenizer of a tokenizer.json object splits text.

    `kept` is the name in the GGUF file that the tokenizer came from; it stays while the tokenizer splits so.

    Raises:
        BadInput: llama.cpp has no name here for this split.
    """
    steps = _steps(described.get("pre_tokenizer"))
    merges = bool(described["model"].get("ignore_merges"))
    named = {name: one for name, one in SPLITS.items() if one.steps == steps and one.ignore_merges == merges}
    if kept is not None and any(kept in (name, *one.aliases) for name, one in named.items()):
        return kept
    if named:
        return next(iter(named))
    whole = ", and takes whole tokens before merges" if merges else ""
    raise BadInput(
        f"the tokenizer splits text in a way that has no name here for llama.cpp ({', '.join(steps)[:200]}"
        f"{whole}); export hf instead"
    )


def check_split(metadata: Mapping[str, Any], file: str) -> None:
    """Raise BadInput where the metadata of a GGUF `file` names a split that is not known here."""
    name = metadata.get(PRE, DEFAULT)
    if metadata.get("tokenizer.ggml.model") == "gpt2" and _named(name) is None:
        known = ", ".join(alike for key, one in SPLITS.items() for alike in (key, *one.aliases))
        raise BadInput(
            f"{file} names '{name}' as the way its tokenizer splits text ({PRE}); known are {known}: "
            "give the model as a safetensors folder"
        )


def keep_split(folder: Path, metadata: Mapping[str, Any], file: str) -> None:
    """Let the tokenizer in `folder`, which transformers read from a GGUF `file`, split as the file says.

    transformers 5.24 reads vocabulary and merges, but splits every such tokenizer as GPT-2's.

    Raises:
        BadInput: the file names a split that is not known here.
    """
    check_split(metadata, file)
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    name = metadata.get(PRE, DEFAULT)
    split = _named(name) or SPLITS[DEFAULT]
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["pre_tokenizer"] = split.pre_tokenizer
    described["model"]["ignore_merges"] = split.ignore_merges
    path.write_text(json.dumps(described, ensure_ascii=False, indent=2), encoding="utf-8")
    settings = folder / SETTINGS
    about = json.loads(settings.read_text(encoding="utf-8")) | {KEPT: name}
    settings.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parts_of(described: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """Return the parts of a sequence in tokenizer.json, or the one part that there is."""
    if described is None:
        return []
    return list(described[name]) if described["type"] == "Sequence" else [described]


def _named(name: str) -> Split | None:
    return next((one for key, one in SPLITS.items() if name in (key, *one.aliases)), None)


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    found = []
    for part in parts_of(pre_tokenizer, "pretokenizers"):
        if part["type"] == "ByteLevel":
            found += [BYTES] if part.get("use_regex", True) else []
        elif part["type"] == "Digits" and part.get("individual_digits"):
            found.append(DIGITS)
        elif part["type"] == "Split":
            found.append(str(part["pattern"].get("Regex") or part["pattern"].get("String")))
        else:
            found.append(str(part["type"]))
    return tuple(found)
