"""Check a run config beyond its schema: names of methods, files, and the model's own limits.

Imports torch only for a method whose settings are given.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from resprout.configs.blocks import BLOCK, block_of, multiple_of
from resprout.configs.errors import BadInput, DoesNotFit, Fault, faults_in, sentences
from resprout.configs.formats import WITH_TYPES
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.load import Loaded, travelling
from resprout.configs.schema import RunConfig
from resprout.flows.inputs import SOURCE, missing, require_source_file, shapes_here, tokenizer_here
from resprout.flows.stages import MODEL, STAGES
from resprout.infra.identity import install_command
from resprout.infra.store.driver import driver_class
from resprout.infra.store.signing import Signer
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.evaluate.task_files import capability_of, check_task, read_task
from resprout.tasks.export.format import FORMATS, entry
from resprout.tasks.models.shape import Shape
from resprout.tasks.prune.registry import SCHEDULES
from resprout.tasks.prune.rounds import schedule_of
from resprout.tasks.prune.target import implied_shape
from resprout.tasks.quantize.format import baselines
from resprout.tasks.quantize.format import format_of as quantized_format

EXTRAS = {"dask": "prefect_dask", "ray": "prefect_ray"}
"""The package behind each task runner that is an extra."""


def check(loaded: Loaded, more: Callable[[Loaded], Iterable[Fault]] = lambda loaded: ()) -> None:
    """BadInput with all faults of a config that shows without running it; reads no weights.

    `more` may find some in what the config names. DoesNotFit where nothing but the model is in the way.
    """
    if faults := [*_faults(loaded), *more(loaded)]:
        raise BadInput(f"{loaded.path}: {sentences(faults)}")
    shapes = shapes_here(loaded)
    if SOURCE not in shapes:
        return
    unfit = _unfit(loaded.config, shapes)
    if loaded.config.quantize is not None:
        unfit += unfit_source(loaded.config, shapes[SOURCE], tokenizer_here(loaded))
    if unfit:
        raise DoesNotFit(f"{loaded.path}: " + "; ".join(unfit))


def _faults(loaded: Loaded) -> list[Fault]:
    """Faults of each section by itself, and of the sources on this machine."""
    config = loaded.config
    steps: list[tuple[str, Callable[[], object]]] = [
        (key, partial(step, getattr(config, stage.section), loaded.base))
        for stage in STAGES
        for key, step in stage.checks.items()
        if getattr(config, stage.section) is not None
    ]
    steps += [
        (
            f"evaluate.{place}.task",
            partial(check_task, task.task, loaded.base, config.evaluate.trust_task_code),
        )
        for place, task in config.evaluate.tasks.items()
    ]
    steps += [
        ("prune", lambda: _trains(config)),
        ("quantize.formats", lambda: _files(config)),
        ("export.formats", lambda: _formats(config)),
        ("compare.baselines", lambda: _baselines(config)),
        ("compare.baselines", lambda: require_source_file(loaded)),
    ]
    if config.gate is not None and config.gate.max_drop:
        steps.append(("gate.max_drop", lambda: _drops(loaded)))
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


def check_fits(config: RunConfig, shapes: Mapping[str, Shape]) -> None:
    """BadInput where sequences, target or a stage do not fit models whose shapes are known only now."""
    if faults := _unfit(config, shapes):
        raise DoesNotFit(f"{config.model.source}: " + "; ".join(faults))


def check_source(config: RunConfig, shape: Shape, tokenizer: Mapping[str, Any] | None) -> None:
    """BadInput where a format of few bits cannot hold settings or tokenizer of the model that is here now."""
    if faults := unfit_source(config, shape, tokenizer):
        raise DoesNotFit(f"{config.model.source}: " + "; ".join(faults))


def unfit_source(config: RunConfig, shape: Shape, tokenizer: Mapping[str, Any] | None) -> list[str]:
    """Formats of few bits that cannot hold the settings or the tokenizer of the model, each with why."""
    found = []
    for name in config.quantize.formats if config.quantize is not None else ():
        try:
            quantized_format(name).check_source(shape, tokenizer)
        except BadInput as error:
            found.append(f"quantize.formats holds {name}, but {error}")
    return found


def _unfit(config: RunConfig, shapes: Mapping[str, Shape]) -> list[str]:
    dense = shapes[SOURCE]
    faults = _too_long(config, dense)
    try:
        cut = implied_shape(dense, config.prune, config.model.dtype)
    except BadInput as error:
        return [*faults, f"prune.target: {error}{_wide_blocks(config, str(error))}"]
    faults += [*_layout_of_files(config, dense), *_unfit_baselines(config, dense)]
    for stage in STAGES:
        if (section := getattr(config, stage.section)) is not None:
            try:
                stage.fits(section, shapes if cut is None else {**shapes, MODEL: cut})
            except BadInput as error:
                faults.append(str(error))
    return faults


def _wide_blocks(config: RunConfig, fault: str) -> str:
    """Where a fault of the target comes from what round_to: auto takes, the format behind it, and another."""
    formats = config.quantize.formats if config.quantize is not None else ()
    rounded = multiple_of(formats)
    if "round_to" not in fault or rounded != config.prune.round_to or rounded <= BLOCK:
        return ""
    widest = max(formats, key=block_of)
    return (
        f"; round_to: auto is {rounded} here because {widest} takes {block_of(widest)} weights of a row "
        f"together; gguf:Q4_0 takes {BLOCK}"
    )


def _layout_of_files(config: RunConfig, dense: Shape) -> list[str]:
    """Formats of few bits that cannot hold what pruning leaves, whose widths may not be known yet."""
    layout = config.prune.layout
    fitting = [one for one in WITH_TYPES.values() if layout in quantized_format(one).layouts(dense)]
    instead = f", or {' or '.join(fitting)}" if fitting else ", or drop the format"
    return [
        f"quantize.formats holds {name}, which for {dense.model_type} has one width for all layers, but "
        f"prune.layout is {layout}; give layout: uniform{instead}"
        for name in (config.quantize.formats if config.quantize is not None else ())
        if layout not in quantized_format(name).layouts(dense)
    ]


def _unfit_baselines(config: RunConfig, dense: Shape) -> list[str]:
    """Formats of few bits that cannot hold the dense model, which is compared in them."""
    if config.quantize is None or config.compare is None:
        return []
    found = []
    for name in baselines(config.quantize.formats, config.compare.baselines):
        try:
            quantized_format(name).check(dense)
        except BadInput as error:
            found.append(f"compare.baselines takes the dense model in {name}, but {error}")
    return found


def _trains(config: RunConfig) -> None:
    """BadInput where a schedule prunes while the model trains, and nothing trains it, or a ladder would."""
    name = config.prune.schedule
    if config.recover is None and name in SCHEDULES and SCHEDULES.entry(name).declared["trains"]:
        raise BadInput(
            f"prune.schedule is {name}, which prunes while the model trains, but recover is left out; give "
            "select and recover, or schedule: one_shot"
        )
    if config.recover is None or len(schedule_of(config.prune)) == 1:
        return
    if config.recover.ladder is not None:
        raise BadInput(
            f"recover.ladder climbs behind pruning, but prune.schedule {name} trains between its rounds, "
            "which all are parts of one training; give schedule: one_shot, or leave ladder out"
        )
    if config.recover.budget is not None and config.recover.budget.limit_seconds is not None:
        raise BadInput(
            f"recover.budget counts seconds, but prune.schedule {name} trains in parts, whose shares of all "
            "steps must be known before; give budget.tokens, or schedule: one_shot"
        )


def check_adapters(config: RunConfig) -> None:
    """BadInput for a format of adapters where the final model is not the pruned one with an adapter."""
    for name in config.export.formats:
        if not entry(name).declared["adapters"]:
            continue
        what = f"export.formats holds {name}, the adapter of recovery by lora"
        if config.recover is None:
            raise BadInput(f"{what}, but recover is left out; give select and recover, or leave {name} out")
        if config.recover.method != "lora":
            raise BadInput(
                f"{what}, but recover.method is {config.recover.method}, which changes more than an adapter "
                f"holds; give method: lora, or leave {name} out"
            )
        if config.recover.continued is not None or config.recover.ladder is not None:
            key = "continued" if config.recover.continued is not None else "ladder"
            raise BadInput(
                f"{what}, but with recover.{key} several trainings come one after another, so that no run "
                f"exports the model that the last adapter goes onto; leave {key} or {name} out"
            )
        if config.sparsify is not None:
            raise BadInput(
                f"{what}, but sparsify changes the weights behind it; leave {name} or sparsify out"
            )
        if len(schedule_of(config.prune)) > 1:
            raise BadInput(
                f"{what}, but prune.schedule {config.prune.schedule} trains between its rounds, so that no "
                f"run exports the model that it goes onto; give schedule: one_shot, or leave {name} out"
            )


def _formats(config: RunConfig) -> None:
    """BadInput for a format that is not there or cannot hold the layout."""
    layout = config.prune.layout
    check_adapters(config)
    for name in config.export.formats[:1] if config.registration is not None else ():
        if entry(name).declared["adapters"]:
            raise BadInput(
                f"export.formats begins with {name}, but the first format is the registered version's and an "
                f"adapter is no model; give formats: [hf, {name}]"
            )
    for name in config.export.formats:
        declared = entry(name).declared
        if layout not in declared["layouts"] and not declared["quantized"]:
            whole = [one for one in FORMATS if not one.declared["quantized"] and not one.declared["adapters"]]
            fitting = [one.name for one in whole if layout in one.declared["layouts"]]
            raise BadInput(
                f"export.formats holds {name}, which stock classes load with one width for all layers, but "
                f"prune.layout is {layout}; give layout: uniform, or formats: [{', '.join(fitting)}]"
            )


def _files(config: RunConfig) -> None:
    """BadInput for a format of few bits that cannot hold the layout, whatever the model is."""
    layout = config.prune.layout
    for name in config.quantize.formats if config.quantize is not None else ():
        if layout not in entry(name).declared["layouts"]:
            fitting = [
                example for form, example in WITH_TYPES.items() if layout in entry(form).declared["layouts"]
            ]
            raise BadInput(
                f"quantize.formats holds {name}, which stock classes load with one width for all layers, but "
                f"prune.layout is {layout}; give layout: uniform, or a format that holds it, say "
                f"{' or '.join(fitting)}"
            )


def _baselines(config: RunConfig) -> None:
    """BadInput for a format of few bits that is not there."""
    if config.quantize is not None and config.compare is not None:
        for name in baselines(config.quantize.formats, config.compare.baselines):
            quantized_format(name)


def _drops(loaded: Loaded) -> None:
    """BadInput for a bound on something that is not evaluated; the nearest is named."""
    config, known = loaded.config, set[str]()
    for task in config.evaluate.tasks.values():
        # A task that cannot be read is a fault of its own.
        with suppress(BadInput):
            known |= {task.name, capability_of(task, read_task(task.task, loaded.base, trusts_code=True))}
    for name in config.gate.max_drop if config.gate is not None and known else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadInput(
                f"{name} is no capability or task that is evaluated; {hint}give one of "
                f"{', '.join(sorted(known))}, or add a suite that has it"
            )


def _store_folder(loaded: Loaded) -> None:
    """BadInput where a local store would lie in a file."""
    uri = loaded.config.infra.store.uri
    if uri is None or driver_class(uri).remote:
        return
    folder = ArtifactStore.from_config(loaded.config.infra.store, loaded.home).driver.folder("content")
    for place in (folder, *folder.parents) if folder else ():
        if place.is_file():
            raise BadInput(f"{uri} is in {place}, which is a file; give a folder or s3://bucket/prefix")


def _too_long(config: RunConfig, shape: Shape) -> list[str]:
    asked: dict[str, int] = {}
    for stage in STAGES:
        if (section := getattr(config, stage.section)) is not None:
            asked |= stage.lengths(section)
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
