"""Which files of a model folder are the model: layout, format of the weights, and what is left behind."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from resprout.configs.errors import BadInput
from resprout.tasks.acquire.source import Wanted

Format = Literal["safetensors", "gguf", "pickle"]

ENDINGS: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "gguf": (".gguf",),
    "pickle": (".bin", ".pt", ".pth", ".ckpt"),
}

BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer.model",
    "*.spm",
    "sentencepiece*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
    "USE_POLICY*",
)
ENCODER_ONLY = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_*/config.json",
)
NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MLFLOW_PARTS = ("model/", "components/tokenizer/")


_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.gguf$")
"""How llama.cpp names the parts of a split file; one part of one is a whole file."""


@dataclass(frozen=True)
class Chosen:
    """`files` maps a path in the model to the path at its source; `weights` are paths in the model."""

    format: Format
    files: dict[str, str]
    weights: tuple[str, ...]


def choose(paths: Iterable[str], wanted: Wanted, place: str) -> Chosen:
    """The files of the model among `paths` at `place`; what is no model that can be used raises BadInput."""
    laid_out = _layout(sorted(paths), place)
    names = list(laid_out)
    weights = {kind: [name for name in names if _is_weight(name, kind)] for kind in ENDINGS}
    stray = weights["safetensors"]
    weights["safetensors"] = _loadable(stray, INDEX in names)
    split = [name for name in weights["gguf"] if _PART.search(name)]
    weights["gguf"] = [name for name in weights["gguf"] if name not in split]
    if "adapter_config.json" in names and "config.json" not in names:
        raise BadInput(
            f"{place} is an adapter, not a model; merge it into its base model and give the result"
        )
    if "config.json" not in names and len(weights["gguf"]) == 1:
        return Chosen("gguf", {name: laid_out[name] for name in weights["gguf"]}, tuple(weights["gguf"]))
    if "config.json" not in names:
        raise BadInput(_no_config(weights["gguf"], split, place))
    beside = BESIDE_WEIGHTS + (ENCODER_ONLY if wanted.purpose == "encoder" else ())
    beside += ("*.py",) if wanted.code else ()
    kept = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in beside)]
    kind: Format = "safetensors" if weights["safetensors"] else "pickle"
    if weights["safetensors"] == [SINGLE]:
        kept = [name for name in kept if name != INDEX]
    if kind == "pickle":
        if stray and not weights["pickle"]:
            raise BadInput(
                f"{place} has {stray[0]} but no {SINGLE} and no shards with their {INDEX}, which "
                "transformers loads; give a folder that save_pretrained wrote"
            )
        _may_unpickle(weights, wanted, place)
        kept += [name for name in names if name.endswith(".bin.index.json")]
    files = {name: laid_out[name] for name in sorted({*kept, *weights[kind]})}
    return Chosen(kind, files, tuple(weights[kind]))


def _loadable(names: list[str], indexed: bool) -> list[str]:
    """Those of a folder's safetensors that transformers loads: one file, or else the shards of an index.

    Beside them may lie the same weights in their authors' own layout (consolidated*), and adapters.
    """
    if SINGLE in names:
        return [SINGLE]
    if not indexed:
        return []
    return [name for name in names if name.startswith("model-")] or names


def _no_config(whole: list[str], split: list[str], place: str) -> str:
    """The fault of a place that is no model: without config.json, and with none or several GGUF files."""
    if whole:
        return f"{place} holds several GGUF files; name one of them: {', '.join(whole[:5])}"
    if split:
        return (
            f"{place} holds a split GGUF file ({split[0]}, ...); join its parts with llama-gguf-split "
            "--merge, or give the model as a safetensors folder"
        )
    return (
        f"{place} holds no config.json and no .gguf file, so it is no model; give a folder that "
        "save_pretrained wrote, or one GGUF file"
    )


def _may_unpickle(weights: dict[Format, list[str]], wanted: Wanted, place: str) -> None:
    if not weights["pickle"]:
        raise BadInput(
            f"{place} has a config.json but no weights; expected .safetensors files beside it"
            + (f", and found {weights['gguf'][0]}: give that file itself" if weights["gguf"] else "")
        )
    if not wanted.allow_pickle:
        raise BadInput(
            f"{place} has pickled weights only ({weights['pickle'][0]}), and loading a pickle can run any "
            "code that its author put there; give a safetensors version, or set model.allow_pickle: true to "
            "have them converted by a weights-only loader in a child process"
        )


def _is_weight(name: str, kind: Format) -> bool:
    if "/" in name or any(fnmatch.fnmatchcase(name, pattern) for pattern in NOT_WEIGHTS):
        return False
    return name.endswith(ENDINGS[kind])


def _layout(paths: list[str], place: str) -> dict[str, str]:
    """Paths as in a plain model folder; MLflow's transformers flavour keeps model and tokenizer apart."""
    if "MLmodel" not in paths or "config.json" in paths:
        return {path: path for path in paths}
    if "model/config.json" not in paths:
        raise BadInput(
            f"{place} is an MLflow model of another layout; those that work are the transformers flavour "
            "(model/config.json, components/tokenizer/) and a plain folder with config.json and safetensors"
        )
    found = {path: path for path in paths if path.startswith("LICENSE")}
    for part in reversed(MLFLOW_PARTS):
        found.update({path.removeprefix(part): path for path in paths if path.startswith(part)})
    return found
