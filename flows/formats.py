"""The formats of a finished run: those that it made, and others that are made of its final model afterwards.

A further format is the steps of the run's own list that it has no record of, `export` and what a format of
few bits needs before, on artifacts that are in the store. So they are cached and recorded as in any run, and
`lineage` and `verify` lead from their digest back to the sources.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.formats import WITH_TYPES, spelled
from resprout.configs.result import GateResult
from resprout.configs.schema import QuantizeConfig, RunConfig
from resprout.flows import preflight
from resprout.flows.check import check_adapters
from resprout.flows.recorded_run import RecordedRun
from resprout.flows.stages import JUDGED, MODEL, Artifacts, Step, Steps
from resprout.infra.store.filesystem import megabytes, walk
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.stage import StepId
from resprout.tasks.export.format import FORMATS, entry, format_of
from resprout.tasks.export.stage import export
from resprout.tasks.gate.stage import gate
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.quantize.format import format_of as quantized_format
from resprout.tasks.quantize.stage import quantize

EXPORT = StepId(export.name)


@dataclass(frozen=True)
class Exported:
    """One format: the artifact that holds it, its record, its folder in there, and its bytes."""

    format: str
    digest: str
    record: str
    folder: str
    bytes: int

    def as_dict(self) -> dict[str, str | int]:
        return vars(self)


def formats_in(store: ArtifactStore, ref: ArtifactRef) -> dict[str, Exported]:
    """The formats that an export artifact holds, by name, the registered one first."""
    listed = store.read_json(ref.digest, "exports.json")
    return {
        one["format"]: Exported(one["format"], ref.digest, ref.record, one["path"], one["bytes"])
        for one in listed
    }


def asked_format(name: str) -> str:
    """The name in the one spelling that it has; BadInput where its type is lacking."""
    try:
        return spelled(name)
    except ValueError as error:
        raise BadInput(f"--format: {error}") from None


def made_by(run: RecordedRun, store: ArtifactStore) -> dict[str, Exported]:
    """The formats that the run itself made and the store still has; none where it was collected."""
    made = run.ref(store, EXPORT)
    return formats_in(store, made) if made is not None and store.check(made.digest) else {}


def failed_bounds(run: RecordedRun, store: ArtifactStore) -> list[str]:
    """The bounds of the gate that the run's model is outside of, each with its value."""
    held = run.ref(store, StepId(gate.name))
    if held is None or not store.check(held.digest):
        return []
    verdict = GateResult.model_validate_json(store.read(held.digest, "gate.json"))
    return [one.text for one in verdict.checks if not one.passed]


class FurtherFormat:
    """The steps that make one more format of a finished run, their inputs checked before anything runs.

    Raises:
        BadInput: an unknown format or type, one that cannot hold the model, a runtime that is not installed,
            artifacts that the store no longer has, or code of the model that no one allowed to run.
    """

    def __init__(self, run: RecordedRun, store: ArtifactStore, form: str, trust_remote_code: bool) -> None:
        format_of(form)
        self.run, self.store, self.form = run, store, form
        self.device = run.device if preflight.device("auto") == "cuda" else "cpu"
        config = _with_format(run.config, form)
        check_adapters(config)
        self.steps = Steps(config, credits=run.steps.credits)
        # The run's own export holds other formats.
        known = {one: ref for one in run.nodes if one != EXPORT and (ref := run.ref(store, one))}
        self.artifacts = Artifacts(self.steps, known)
        self.todo = self._missing()
        self._refuse_impossible(trust_remote_code)

    def _missing(self) -> list[Step]:
        """The export and all before it that the run has no record of, in their order."""
        wanted, found = {EXPORT}, list[Step]()
        # Nobody judges the file: its card states the scores of the model that it is made of.
        unjudged = self.steps.groups[JUDGED].values()
        for step in reversed(self.steps):
            if step.id in wanted and step.id not in self.artifacts:
                found.append(step)
                wanted |= {slot.step for slot in step.inputs.values() if slot not in unjudged}
        return found[::-1]

    def _refuse_impossible(self, trust_remote_code: bool) -> None:
        section = self.steps.config.quantize
        for check in quantize.checks.values() if section is not None else ():
            check(section, Path())
        for step in self.todo:
            for role, slot in step.inputs.items():
                ref = self.artifacts.get(slot.step)
                if ref is not None and not self.store.check(ref.digest):
                    raise BadInput(
                        f"{self.form} would be made of the run's {role} (artifact {ref.digest}), which "
                        f"{self.store.root_uri} no longer has whole; run its config again, which makes what "
                        "is missing, or restore a backup"
                    )
        model, folder = self.steps.names[MODEL], self.steps.names[MODEL].folder
        dense = self.artifacts[model.step].digest
        path = f"{folder}/config.json" if folder else "config.json"
        self._refuse_misfit(shape_of(self.store.read_json(dense, path)))
        if self.run.config.model.trust_remote_code and not trust_remote_code:
            raise BadInput(
                "this run used Python code that came with its model; read that code in the artifact "
                f"{dense} and give --trust-remote-code to run it"
            )

    def _refuse_misfit(self, shape: Shape) -> None:
        layout = "uniform" if shape.stock else "per_layer"
        if layout not in _layouts(self.form, shape):
            names = [WITH_TYPES.get(one.name, one.name) for one in FORMATS]
            fitting = [name for name in names if layout in _layouts(name, shape)]
            raise BadInput(
                f"{self.form} holds a {shape.model_type} whose layers all have one width, and those of "
                f"this one differ; give --format {' or '.join(fitting)}"
            )
        if (section := self.steps.config.quantize) is not None:
            quantize.fits(section, {"source": shape})


def _layouts(form: str, shape: Shape) -> tuple[str, ...]:
    """Layouts that a format can hold, for a model of this shape's family."""
    declared = entry(form).declared
    return quantized_format(form).layouts(shape) if declared["quantized"] else declared["layouts"]


def _with_format(config: RunConfig, form: str) -> RunConfig:
    """The run's config as if it exported this format alone; speeds and comparisons are not made again."""
    changes: dict[str, object] = {"gate": None, "compare": None, "measure": None, "quantize": None}
    if entry(form).declared["quantized"]:
        section = config.quantize or QuantizeConfig(formats=(form,))
        changes["quantize"] = section.model_copy(update={"formats": (form,)})
    changes["export"] = config.export.model_copy(update={"formats": (form,)})
    return config.model_copy(update=changes)


def copy_out(store: ArtifactStore, one: Exported, target: Path) -> Path:
    """Copy a format, its bytes hashed, to the folder `target`, which is there whole or not at all.

    Raises:
        BadInput: something is there already, or the place cannot be written.
        StageFailed: the disk is full.
    """
    target = target.expanduser().absolute()
    refuse_unusable(target)
    with store.open(one.digest) as content:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
                copy = Path(scratch) / target.name
                for relative, file in walk(content / one.folder):
                    (copy / relative).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy / relative)
                # An empty folder is replaced in the same step; one that was filled meanwhile stays.
                copy.replace(target)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StageFailed(
                    f"the disk of {target} is full, where {megabytes(one.bytes)} are needed; make room "
                    "there, or give another folder in --to"
                ) from error
            raise BadInput(
                f"{target} cannot be written ({error.strerror}); give another folder in --to"
            ) from error
    return target


def refuse_unusable(target: Path) -> None:
    """BadInput where there is anything but an empty folder, or where none can be made."""
    target = target.expanduser().absolute()
    try:
        taken = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
        if not taken:
            above = next(parent for parent in target.parents if parent.exists())
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=above).cleanup()
    except OSError as error:
        raise BadInput(f"{target} cannot be used ({error.strerror}); give a new or an empty folder") from None
    if taken:
        raise BadInput(f"{target} is there and not empty; give a new or an empty folder in --to")
