"""Copy or convert a pinned model to safetensors; GGUF is dequantised, pickles load in a child process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.stored_json import DamagedJson, parse_json, safetensors_header
from resprout.tasks.acquire import unpickle
from resprout.tasks.acquire.choose import INDEX, Chosen
from resprout.tasks.acquire.source import Pinned
from resprout.tasks.core.job import Progress
from resprout.tasks.gguf.splits import check_split, keep_split
from resprout.tasks.models.gguf_header import read_header, refuse_cut, refuse_part

PIECE_BYTES = 1024 * 1024
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json",
)  # fmt: skip
"""Files of a model in which transformers looks up keys."""
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def copy_model(
    chosen: Chosen, files: dict[str, Path], pinned: Pinned, folder: Path, progress: Progress
) -> None:
    """Copy the model's files byte for byte and write source.json; shards and known hashes are checked."""
    listed = _shards(files)
    weights = [name for name in chosen.weights if listed is None or name in listed]
    files = {name: path for name, path in files.items() if name in weights or name not in chosen.weights}
    known = {file.path: file.sha256 for file in pinned.files}
    done, total = 0, sum(path.stat().st_size for path in files.values())
    for name, path in sorted(files.items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        found = hashlib.sha256()
        with path.open("rb") as source, target.open("wb") as sink:
            while piece := source.read(PIECE_BYTES):
                found.update(piece)
                sink.write(piece)
                done += len(piece)
                progress(done, total, "bytes")
        if known[name] is not None and found.hexdigest() != known[name]:
            raise VerificationFailed(f"{name} of {pinned.uri} arrived with another SHA-256")
    dtypes = Counter[str]()
    for name in weights:
        dtypes.update(_dtype_bytes(folder / name))
    widest = dtypes.most_common(1)[0][0]
    _write_source(folder, files, weights, f"safetensors:{NAMES.get(widest, widest.lower())}")


def dequantise(
    chosen: Chosen, files: dict[str, Path], folder: Path, scratch: Path, dtype: str, progress: Progress
) -> None:
    """Weights of a GGUF file in `dtype` as safetensors, with its tokenizer, chat template and config."""
    (path,) = files.values()
    metadata, _ = read_header(path)
    refuse_part(path, metadata)
    refuse_cut(path)
    check_split(metadata, path.name)
    progress(0, 1, "models")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    from resprout.tasks.models.load import require_all

    logging.disable_progress_bar()

    # Beside the file may lie a config that transformers would prefer to the file's own.
    alone = scratch / "gguf"
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path.resolve())
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone,
            gguf_file="model.gguf",
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            alone, gguf_file="model.gguf", local_files_only=True, trust_remote_code=False
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Damaged and unknown files end in errors of any type, a plain Exception from the tokenizer included.
        architecture = metadata.get("general.architecture", "unknown")
        raise BadInput(
            f"transformers cannot read {path.name} (architecture '{architecture}'): {_line(error)}; give "
            "the model as a safetensors folder"
        ) from error
    model, found = loaded
    require_all(found, path.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_places(folder)
    keep_split(folder, metadata, path.name)
    _write_source(folder, files, chosen.weights, f"gguf:{quantisation(metadata)}")
    progress(1, 1, "models")


def keep_file(files: Mapping[str, Path], folder: Path, scratch: Path) -> None:
    """A GGUF file as it is, called model.gguf, with the config and tokenizer that are in it."""
    (path,) = files.values()
    metadata, _ = read_header(path)
    refuse_part(path, metadata)
    refuse_cut(path)
    from transformers import AutoConfig, AutoTokenizer

    alone = scratch / "gguf"
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path.resolve())
    here: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
    AutoConfig.from_pretrained(alone, **here).save_pretrained(folder)
    AutoTokenizer.from_pretrained(alone, **here).save_pretrained(folder)
    _forget_places(folder)
    keep_split(folder, metadata, path.name)
    shutil.copyfile(path, folder / "model.gguf")


def convert_pickle(
    chosen: Chosen, files: dict[str, Path], folder: Path, scratch: Path, dtype: str, progress: Progress
) -> None:
    """Pickled weights as safetensors in `dtype`, by the weights-only loader in an isolated child process."""
    progress(0, 1, "models")
    apart = scratch / "pickled"
    apart.mkdir()
    single = len(chosen.weights) == 1
    for name, path in files.items():
        target = "pytorch_model.bin" if single and name in chosen.weights else name
        (apart / target).parent.mkdir(parents=True, exist_ok=True)
        (apart / target).symlink_to(path.resolve())
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    environment |= {"HOME": str(scratch), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-I", "-m", unpickle.__name__, str(apart), str(folder), dtype],
        env=environment,
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
        raise BadInput(
            f"{chosen.weights[0]} cannot be converted by the weights-only loader ({reason}); "
            "give a safetensors version"
        )
    for name, path in files.items():
        if name not in chosen.weights and not (folder / name).exists() and not name.endswith(".index.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(path.read_bytes())
    _forget_places(folder)
    _write_source(folder, files, chosen.weights, f"pickle:{Path(chosen.weights[0]).suffix.lstrip('.')}")
    progress(1, 1, "models")


def quantisation(metadata: Mapping[str, Any]) -> str:
    """Return a GGUF file's most common quantisation, say Q4_1; 'unknown' where the file does not say."""
    from gguf import LlamaFileType

    try:
        return (
            LlamaFileType(int(metadata["general.file_type"]))
            .name.removeprefix("MOSTLY_")
            .removeprefix("ALL_")
        )
    except (KeyError, ValueError):
        return "unknown"


def _write_source(folder: Path, files: dict[str, Path], weights: Sequence[str], form: str) -> None:
    size = sum(files[name].stat().st_size for name in weights)
    about = {"source_bytes": size, "source_format": form}
    (folder / "source.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _shards(files: dict[str, Path]) -> set[str] | None:
    """Files that the index of shards lists, None where there is no index; BadInput where one is not there."""
    if INDEX not in files:
        return None
    try:
        shards = set(parse_json(files[INDEX].read_bytes(), INDEX)["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadInput(
            f"{INDEX} is no index of shards ({type(error).__name__}); fetch the model again"
        ) from error
    if missing := sorted(shards - set(files), key=str):
        raise BadInput(f"{INDEX} lists {missing[0]}, which is not there; fetch the model again")
    return shards


def require_sound(name: str, path: Path) -> None:
    """Raise BadInput where a JSON file of a model, or the header of its safetensors, is damaged."""
    if name.endswith(".safetensors"):
        require_safetensors(path)
    elif name.endswith(".json"):
        try:
            found = parse_json(path.read_bytes(), name, finite=name == "config.json")
            if name in OBJECTS and not isinstance(found, dict):
                raise DamagedJson(f"{name} holds no object but a {type(found).__name__}")
        except DamagedJson as error:
            raise BadInput(f"{error}; fetch the model again, or write the file again") from None


def require_safetensors(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors; BadInput where it is not complete, or holds none."""
    try:
        if tensors := safetensors_header(path):
            return tensors
        raise DamagedJson(f"{path.name} holds no tensor")
    except DamagedJson as error:
        raise BadInput(f"{error}; fetch it again") from None


def _dtype_bytes(path: Path) -> Counter[str]:
    """Bytes of each dtype by the header of a safetensors file."""
    sizes = Counter[str]()
    for tensor in require_safetensors(path).values():
        start, end = tensor["data_offsets"]
        sizes[tensor["dtype"]] += end - start
    return sizes


def _forget_places(folder: Path) -> None:
    """Drop the paths that transformers notes in its JSON files: content is the same wherever it was made."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            data = parse_json(path.read_bytes(), name)
            for key in (
                "_name_or_path",
                "name_or_path",
                "_model_name_or_path",
                "gguf_file",
                "is_local",
                "local_files_only",
            ):
                data.pop(key, None)
            path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
