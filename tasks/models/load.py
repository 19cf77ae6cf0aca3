"""A model folder in and out of memory: safetensors only, no code from the folder unless asked.

A model larger than a device is dispatched by accelerate: hooks fetch the weights of a layer that lies in
memory beside a GPU, or on disk, when it computes. From disk they are read from the folder's own files; those
that have another form there (fused experts) are written to a temporary folder that goes with the model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from resprout.configs.errors import BadInput, ResproutError
from resprout.tasks.core.hardware import memory_by_device
from resprout.tasks.core.job import Job
from resprout.tasks.core.malloc_tuning import keep_freed_memory
from resprout.tasks.models.anatomy import anatomy, is_offloaded
from resprout.tasks.models.families import LAYOUT_KEY
from resprout.tasks.models.layouts import cut_class, without_code
from resprout.tasks.models.offload import ModelWriter
from resprout.tasks.models.placement import Device, Placement, place, room
from resprout.tasks.models.shape import read_config, shape_of
from resprout.tasks.models.tokenizer_files import NO_TOKENIZER, TOKENIZER_FILES, has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

C = TypeVar("C")

DTYPES = ("bfloat16", "float16", "float32")


def load_for(
    job: Job[Any],
    folder: Path,
    *,
    models: int = 1,
    beside: PreTrainedModel | None = None,
    resident: str = "",
) -> PreTrainedModel:
    """The model in `folder` where the job has models lie; `placement_for` and `load_model` say the rest."""
    placement = placement_for(job, folder, models=models, beside=beside, resident=resident)
    return load_model(folder, job.dtype, job.device, job.trust_remote_code, placement)


def placement_for(
    job: Job[Any],
    folder: Path,
    *,
    models: int = 1,
    beside: PreTrainedModel | None = None,
    resident: str = "",
) -> Placement | None:
    """Where the layers of the model in `folder` are to lie; None: all on the job's device.

    `models` share the devices, this one the first; or this one is `beside` another, which was loaded before.
    `resident` is who needs all weights in memory; BadInput where they do not fit there.
    """
    if job.max_memory is None:
        return None
    # Packed weights take as much as whole ones once they are unpacked.
    shape = shape_of({**read_config(folder), "quantization_config": None})
    here = {one: free // models for one, free in room_for(job, beside).items()}
    placement = place(shape, job.dtype, here)
    if resident and placement.offloads:
        raise BadInput(
            f"{resident} needs all weights of the model in memory, {shape.sizes(job.dtype).bytes / 1e9:.1f} "
            f"GB in {job.dtype}, and there is room for {sum(here.values()) / 1e9:.1f} GB; give a smaller "
            "model.dtype or a larger machine"
        )
    return placement


def without_room(job: Job[C]) -> Job[C]:
    """The job with no memory for layers, which are read from files one after another then."""
    return replace(job, max_memory=dict.fromkeys(map(str, memory_by_device(job.device)), 0))


def load_pair(job: Job[Any], first: Path, second: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The models in two folders, which share the devices."""
    one = load_for(job, first, models=2)
    return one, load_for(job, second, beside=one)


def room_for(job: Job[Any], beside: PreTrainedModel | None = None) -> dict[Device, int]:
    """Bytes that weights may take by device, less what the model `beside` takes of what the config grants."""
    found = room(job.device, job.max_memory or {})
    if beside is not None:
        # What is free is so without it.
        granted = {one for one in found if str(one) in (job.max_memory or {})}
        found |= {one: max(0, found[one] - _held(beside, one)) for one in granted}
    return found


def _held(model: PreTrainedModel, device: Device) -> int:
    """Bytes of the model's weights that lie on a device."""
    where = torch.device(device)
    unique = {id(one): one for one in model.parameters() if one.device == where}
    return sum(one.nbytes for one in unique.values())


def load_model(
    folder: Path,
    dtype: str,
    device: str,
    trust_remote_code: bool = False,
    placement: Placement | None = None,
) -> PreTrainedModel:
    """The model in `folder` in eval mode without gradients, its weights in `dtype` on `device`.

    With a `placement` its layers lie where that says, and a layer that is not in memory is there while it
    computes or is `loaded` (`anatomy.Layer`). Stock transformers classes load it; a folder whose layers
    differ (`resprout_layout` in config.json) is loaded by the stock class cut to those widths. A folder
    without config.json or safetensors, one that lacks weights, or an unknown dtype, raises BadInput.
    """
    check_folder(folder)
    if dtype not in DTYPES:
        raise BadInput(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    keep_freed_memory()
    how: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    spread = placement is not None and set(placement.layers) != {placement.main}
    if placement is not None and spread:
        # accelerate warns of what was asked for.
        logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
        rewritten = TemporaryDirectory(prefix="resprout-")
        how |= {"offload_folder": rewritten.name, "placement": placement}
    model, found = _load(folder, trust_remote_code, **how)
    require_all(found, str(folder))
    if spread:
        # Deleted with the model.
        model.resprout_rewritten = rewritten
    else:
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    return model


def _device_map(model: nn.Module, prefix: str, placement: Placement) -> dict[str, Device]:
    """For accelerate the device of each layer, named from `prefix` on, and of each module outside them."""
    found: dict[str, Device] = {f"{prefix}{index}": one for index, one in enumerate(placement.layers)}

    def outside(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            if not prefix.startswith(f"{path}{name}."):
                found[f"{path}{name}"] = placement.main
            elif prefix != f"{path}{name}.":
                outside(child, f"{path}{name}.")

    outside(model, "")
    return found


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


def _load(
    folder: Path, trust_remote_code: bool, placement: Placement | None = None, **how: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
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
    build: Callable[[Any], nn.Module] = partial(loader.from_config, **extra)
    if getattr(config, LAYOUT_KEY, None) is not None:
        stock = AutoModelForCausalLM._model_mapping[type(config)]
        loader, extra, config = cut_class(stock), {}, without_code(config)
        build = loader
    if placement is not None:
        with torch.device("meta"):
            empty = build(config)
        how["device_map"] = _device_map(empty, shape_of(folder).family.layer_prefix, placement)
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
        BadInput: there is none, one that cannot be loaded, or one that only code in the folder can load,
            without `trust_remote_code`.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer([path.name for path in folder.iterdir()]):
        raise BadInput(f"{folder} {NO_TOKENIZER}")
    try:
        with code_refused(str(folder)):
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # What anybody's files make a library raise has no common type.
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BadInput(
            f"the tokenizer in {folder} cannot be loaded ({what}); write the model's tokenizer again with "
            "save_pretrained"
        ) from error


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
    if is_offloaded(model):
        _write_weights(model, folder)
        save_beside_weights(model, folder, tokenizer_from)
        return
    model.save_pretrained(folder)
    _copy_tokenizer(tokenizer_from, folder)


def _write_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write the weights of a model that does not fit in memory, a layer at a time."""
    shape = shape_of(model.config.to_dict())
    writer = ModelWriter(model, dict(shape.tensors()), folder)
    writer.put({name: model.get_parameter(name) for name in shape.family.ends(shape.config)})
    for layer in anatomy(model).layers:
        with layer.loaded():
            prefix = f"{shape.family.layer_prefix}{layer.index}."
            writer.put({prefix + name: tensor for name, tensor in layer.tensors.items()})
    writer.close()


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
