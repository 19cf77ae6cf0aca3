"""What the schema cannot know: names of methods, files, and the model's own limits.

Imports torch only for a method whose settings are given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial

from resprout.configs.errors import BadInput, DoesNotFit
from resprout.configs.load import Loaded, travelling
from resprout.configs.schema import InfraConfig, RunConfig
from resprout.configs.stages import SparsifyConfig
from resprout.flows.catalog import registries
from resprout.flows.faults import Fault, faults_in, sentences
from resprout.flows.sources import missing, source_shape
from resprout.infra.extras import install_command
from resprout.infra.proof.signing import Signer
from resprout.infra.store.driver import driver_class
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.size import Shape
from resprout.tasks.prune.resolve import resolve
from resprout.tasks.prune.rounds import schedule_of
from resprout.tasks.prune.target import implied_shape
from resprout.tasks.sparsify.weights import check_sparsity

EXTRAS = {"dask": "prefect_dask", "ray": "prefect_ray"}
"""The package behind each task runner that is an extra."""


def check(loaded: Loaded, more: Callable[[Loaded], Iterable[Fault]] = lambda loaded: ()) -> None:
    """BadInput with all faults of a config that shows without running it; reads no weights.

    `more` may find some in what the config names. DoesNotFit where nothing but the model is in the way.
    """
    if faults := [*_faults(loaded), *more(loaded)]:
        raise BadInput(f"{loaded.path}: {sentences(faults)}")
    shape = source_shape(loaded)
    if shape is not None and (unfit := _unfit(loaded.config, shape)):
        raise DoesNotFit(f"{loaded.path}: " + "; ".join(unfit))


def _faults(loaded: Loaded) -> list[Fault]:
    """Faults of each section by itself, and of the sources on this machine."""
    config, known = loaded.config, registries()
    steps: list[tuple[str, Callable[[], object]]] = [
        ("calibrate.method", lambda: known["calibrate.method"].entry(config.calibrate.method)),
        ("prune", lambda: _prune(config)),
    ]
    if (select := config.select) is not None:
        steps.append(("select.method", lambda: known["select.method"].entry(select.method)))
    if (recover := config.recover) is not None:
        steps.append(("recover.method", lambda: known["recover.method"].entry(recover.method)))
    if (sparse := config.sparsify) is not None:
        steps.append(("sparsify", lambda: _sparsify(sparse)))
    for one in config.evaluate.zero_shot.tasks if config.evaluate.zero_shot else ():
        steps.append(("evaluate.zero_shot", partial(read_task, one.task, loaded.base)))
    steps += [
        ("infra.store.uri", lambda: _store_folder(loaded)),
        ("infra.proof", lambda: Signer.from_config(config.infra.proof).require_own_key()),
        ("infra.task_runner", lambda: require_extra(config.infra)),
    ]
    if config.infra.shards > 1:
        steps.append(("infra.shards", lambda: travelling(loaded)))
    return [fault for key, step in steps for fault in faults_in(key, step)] + missing(loaded)


def require_extra(infra: InfraConfig) -> None:
    """BadInput where the packages of the task runner are not installed; imports none of them."""
    module = EXTRAS.get(infra.task_runner)
    if module is not None and importlib.util.find_spec(module) is None:
        raise BadInput(
            f"infra.task_runner is {infra.task_runner} but {module} is not installed; run "
            f"{install_command(infra.task_runner)}, or set infra.task_runner: threads"
        )


def check_fits(config: RunConfig, shape: Shape) -> None:
    """BadInput where sequences or target do not fit a model whose shape shows only once it is here."""
    if faults := _unfit(config, shape):
        raise DoesNotFit(f"{config.model.source}: " + "; ".join(faults))


def _unfit(config: RunConfig, shape: Shape) -> list[str]:
    faults = _too_long(config, shape)
    try:
        cut = implied_shape(shape, config.prune, config.model.dtype) or shape
    except BadInput as error:
        return [*faults, f"prune.target: {error}"]
    if "hf" in config.export.formats and not cut.stock:
        faults.append(
            "export.formats holds hf, but stock classes cannot state the widths that this model has been "
            "given; give formats: [hf_layouts]"
        )
    if config.sparsify is not None:
        try:
            check_sparsity(cut, config.sparsify)
        except BadInput as error:
            faults.append(str(error))
    return faults


def _prune(config: RunConfig) -> None:
    """BadInput where parts of the section do not fit together, or a setting is out of bounds.

    Methods are imported only where a setting of theirs is given.
    """
    names, known = resolve(config.prune), registries()
    for part in ("criterion", "allocator", "repair"):
        if getattr(config.prune, f"{part}_settings"):
            method = known[f"prune.{part}"].get(getattr(names, part))
            method(**getattr(names, f"{part}_settings"))
    schedule_of(config.prune)
    name = config.prune.schedule
    if config.recover is None and known["prune.schedule"].entry(name).declared["trains"]:
        raise BadInput(
            f"prune.schedule is {name}, which prunes while the model trains, but recover is left out; give "
            "select and recover, or schedule: one_shot"
        )


def _sparsify(section: SparsifyConfig) -> None:
    """BadInput where the method or a setting is unknown or out of bounds."""
    known = registries()["sparsify.method"]
    settings = known.settings(section.method, section.settings)
    if section.settings:
        known.get(section.method)(**settings)


def _store_folder(loaded: Loaded) -> None:
    """BadInput where a local store would lie in a file."""
    uri = loaded.config.infra.store.uri
    if uri is None or driver_class(uri).remote:
        return
    folder = ArtifactStore.from_config(loaded.config.infra.store, loaded.home).driver.folder("content")
    for place in (folder, *folder.parents) if folder else ():
        if place.is_file():
            raise BadInput(f"{uri} lies in {place}, which is a file; give a folder or s3://bucket/prefix")


def _too_long(config: RunConfig, shape: Shape) -> list[str]:
    asked = {
        "calibrate.seq_len_tokens": config.calibrate.seq_len_tokens,
        "evaluate.perplexity.window_tokens": config.evaluate.perplexity.window_tokens
        + config.evaluate.perplexity.bos,
    }
    if config.select is not None:
        asked["select.max_len_tokens"] = config.select.max_len_tokens
    if config.measure is not None:
        asked["measure.prefill_tokens + decode_tokens"] = (
            config.measure.prefill_tokens + config.measure.decode_tokens
        )
    over = [
        f"{name} is {length}"
        for name, length in asked.items()
        if shape.max_positions and length > shape.max_positions
    ]
    if not over:
        return []
    return [
        f"{' and '.join(over)}, but the model has {shape.max_positions} positions; give shorter sequences"
    ]
