"""A model folder in and out of memory: safetensors only, no code from the folder unless asked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from resprout.configs.errors import BadInput, ResproutError
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.layouts import cut_class, without_code
from resprout.tasks.models.malloc_tuning import keep_freed_memory
from resprout.tasks.models.shape import read_config
from resprout.tasks.models.tokenizer_files import NO_TOKENIZER, TOKENIZER_FILES, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("bfloat16", "float16", "float32")


def load_model(folder: Path, dtype: str, device: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model in `folder` in eval mode without gradients, its weights in `dtype` on `device`.

    Stock transformers classes load it; a folder whose layers differ (`resprout_layout` in config.json) is
    loaded by the stock class cut to those widths. A folder without config.json or safetensors, one that lacks
    weights, or an unknown dtype, raises BadInput.
    """
    check_folder(folder)
    if dtype not in DTYPES:
        raise BadInput(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    keep_freed_memory()
    model, found = _load(folder, trust_remote_code, dtype=getattr(torch, dtype))
    require_all(found, str(folder))
    model.to(device)
    model.requires_grad_(False)
    model.eval()
    return model


def check_weights(folder: Path, place: str, trust_remote_code: bool = False) -> None:
    """Raise BadInput, which names `place`, unless the folder's safetensors are all that its config asks for.

    Names and shapes are compared by the rules of loading, on the meta device: no weight is read.
    """
    try:
        _, found = _load(folder, trust_remote_code, device_map="meta")
    except (MemoryError, ResproutError):
        raise
    except Exception as error:
        # Configs and weights that no test of ours foresees end in errors of any type.
        raise BadInput(
            f"transformers cannot load {place} ({' '.join(str(error).split())[:300]}); give a folder that "
            "save_pretrained wrote"
        ) from error
    require_all(found, place)


def require_all(found: Mapping[str, Any], place: str) -> None:
    """Raise BadInput where transformers' loading info lists weights that it would fill at random.

    Tied weights, of which one stands for all, are not missing to it.
    """
    missing = sorted(found["missing_keys"])
    shapes = sorted(
        f"{name} ({list(given)} instead of {list(wanted)})"
        for name, given, wanted in found["mismatched_keys"]
    )
    for names, fault in ((missing, "lacks"), (shapes, "has other shapes for")):
        if names:
            raise BadInput(
                f"{place} {fault} {len(names)} of the weights that its config asks for "
                f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); give the whole model, or the "
                "config that came with the weights"
            )


def _load(folder: Path, trust_remote_code: bool, **how: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers reports of weights that it did not find."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with code_refused(str(folder)):
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    loader: Any = AutoModelForCausalLM
    extra: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if getattr(config, LAYOUT_KEY, None) is not None:
        stock = AutoModelForCausalLM._model_mapping[type(config)]
        loader, extra, config = cut_class(stock), {}, without_code(config)
    with code_refused(str(folder)):
        loaded: tuple[PreTrainedModel, dict[str, Any]] = loader.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            # Other shapes are reported like missing weights, in one sentence of ours.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **extra,
            **how,
        )
    return loaded


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    Raises:
        BadInput: there is none, or one that only code in the folder can load, without `trust_remote_code`.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer([path.name for path in folder.iterdir()]):
        raise BadInput(f"{folder} {NO_TOKENIZER}")
    with code_refused(str(folder)):
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )


@contextmanager
def code_refused(place: str) -> Iterator[None]:
    """Raise BadInput where transformers finds that only Python code that is at `place` could load it."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise BadInput(
            f"{place} can be loaded only by Python code that comes with it (auto_map), and such code is not "
            "run; read it first and set model.trust_remote_code: true, or give a model of a stock class"
        ) from error


def save_model(model: PreTrainedModel, folder: Path, tokenizer_from: Path) -> None:
    """Write config.json, generation_config.json and safetensors to `folder`, and copy the tokenizer there.

    Equal weights give equal bytes: the tokenizer's files are copied, never written again, and no path or date
    is stored.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _copy_tokenizer(tokenizer_from, folder)


def save_beside_weights(model: PreTrainedModel, folder: Path, tokenizer_from: Path) -> None:
    """Write all that `save_model` does but the weights."""
    # save_pretrained notes these two itself.
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    _copy_tokenizer(tokenizer_from, folder)


def _copy_tokenizer(tokenizer_from: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def check_folder(folder: Path) -> None:
    """Raise BadInput unless `folder` holds a readable config.json and safetensors weights."""
    read_config(folder)
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights"
        raise BadInput(
            f"{folder} holds no .safetensors file but {found}; convert the weights to safetensors first "
            "(model.allow_pickle: true lets resprout do that in a child process)"
        )


@contextmanager
def own_generator(seed: int, device: str) -> Iterator[None]:
    """Draw from `seed` alone while the context is open; torch's global generators are restored."""
    devices = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
