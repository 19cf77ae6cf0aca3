"""The stages of a run in their order, and the steps that a config makes of them.

A run is a list of steps, made from the config alone: each is one call of a stage, with its section and, for
each role that the stage declares, the earlier step whose artifact it reads. A run makes the steps, `plan`
looks them up in the store, `reproduce` makes them from a record.

All that can be found out cheaply comes first: the pool is held against its budget, and text and tasks of the
evaluation are tried before a weight is loaded. Each model is evaluated as soon as it exists; the dense
scores are shared by all runs on that model, because their key is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from resprout.configs.schema import (
    GateOfRung,
    PartOfRecovery,
    PaserConfig,
    PruneRound,
    QuantizeConfig,
    RecoverConfig,
    RunConfig,
    Rung,
    SelectConfig,
)
from resprout.flows import preflight
from resprout.flows.inputs import SHAPING, SOURCE, acquisitions, keeps_file
from resprout.infra.licences import Credit
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.acquire.stage import acquire_model
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.core.job import Job
from resprout.tasks.core.run import Run
from resprout.tasks.core.stage import Input, Model, Stage, StepId, Subfolder
from resprout.tasks.draft.stage import draft
from resprout.tasks.evaluate.stage import evaluate, evaluation_data
from resprout.tasks.export.card import SOURCE as CREDIT
from resprout.tasks.export.stage import Export, export
from resprout.tasks.gate.stage import gate
from resprout.tasks.measure.stage import measure
from resprout.tasks.prepare.stage import prepare
from resprout.tasks.prune.mask_and_regrow import Masking, Regrowth, mask, regrow
from resprout.tasks.prune.rounds import Round, schedule_of
from resprout.tasks.prune.stage import plan, prune, score
from resprout.tasks.quantize.format import baselines
from resprout.tasks.quantize.names import DENSE, SOURCE_FILE, file_of, scores_of
from resprout.tasks.quantize.stage import Quantization, importance, quantize
from resprout.tasks.recover.continuation import continuation
from resprout.tasks.recover.ladder import rungs
from resprout.tasks.recover.stage import recover, teacher
from resprout.tasks.report.stage import model_name
from resprout.tasks.select.comparison import CHOSEN, role_of
from resprout.tasks.select.stage import (
    answer,
    compare_selections,
    dense_words,
    filter_rows,
    pool,
    reads_kept_words,
    select,
    tries_recovery,
)
from resprout.tasks.sparsify.stage import sparsify

MODEL, FINAL = "model", "final"
"""Names of the model that steps go on with, and of the last model's scores."""
MODELS, SCORES, QUANTIZED, JUDGED = "models", "scores", "quantized", "judged"
"""Groups of all models and of their scores, and of those of few bits that ship, by the models' names."""
RIVALS, CHOICES = "rivals", "choices"
"""Groups of the scores of selections that are compared, and of their rows, by selection and seed."""
GROWTH = {"criterion": "gradient", "criterion_settings": {}}
"""Criterion for removed units, in place of the section's own."""


@dataclass(frozen=True)
class Slot:
    """The artifact of a step, or a folder in it."""

    step: StepId
    folder: str = ""


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a stage: `inputs` by the roles that the stage declares."""

    stage: Stage[Any]
    role: str
    section: Any
    inputs: Mapping[str, Slot]
    leaves: Model | None
    gives: str
    seed: int | None = None
    """Seed of its draws, where that is not the run's."""

    @property
    def id(self) -> StepId:
        return StepId(self.stage.name, self.role)

    @property
    def label(self) -> str:
        return self.stage.label(self.role)

    @property
    def writes_model(self) -> bool:
        """Whether its artifact holds weights of at most the dense model's size."""
        return self.stage.weights or self.leaves is not None


class Steps(Sequence[Step]):
    """The steps of a run, and what later ones may read: artifacts by name, and by name in groups.

    `sections` are those of the acquire stages; a run whose inputs are here already needs none.
    """

    def __init__(
        self, config: RunConfig, sections: Mapping[str, Any] | None = None, credits: Sequence[Credit] = ()
    ) -> None:
        self.config, self.credits = config, credits
        self.steps: list[Step] = []
        self.names: dict[str, Slot] = {}
        self.groups: dict[str, dict[str, Slot]] = defaultdict(dict)
        self.trained = 0.0
        """Share of all training that the steps so far do."""
        self.recoveries = 0
        """Recoveries so far that are not the last."""
        for one in acquisitions(config):
            leaves = one.stage.leaves if one.name == SOURCE else None
            step = Step(one.stage, one.role, (sections or {}).get(one.name), {}, leaves, one.name)
            self.steps.append(step)
            known = self.groups[one.group] if one.group else self.names
            known[one.name] = Slot(step.id)
        self.acquisitions = len(self.steps)
        self.names[MODEL] = self.names[SOURCE]
        for stage in STAGES:
            for extra in BEFORE.get(stage, ()):
                extra(self)
            made = any(step.id == StepId(stage.name) for step in self.steps)
            if not made and self.section(stage) is not None:
                CALLS.get(stage, _call)(self, stage)

    def __getitem__(self, index: Any) -> Any:
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def pruned(self) -> int:
        """The place behind the step that scores the pruned model."""
        scored = StepId(evaluate.name, prune.leaves.name if prune.leaves else "")
        return 1 + next(place for place, step in enumerate(self.steps) if step.id == scored)

    def graph(self) -> dict[str, list[str]]:
        """The labels of the steps, each with those of the steps whose artifacts it reads.

        Of steps that only check what comes later, no one reads the artifact: they are left out.
        """
        labels = {step.id: step.label for step in self.steps}
        read = {slot.step for step in self.steps for slot in step.inputs.values()}
        return {
            step.label: list(dict.fromkeys(labels[slot.step] for slot in step.inputs.values()))
            for step in self.steps
            if step.stage.reported or step.id in read
        }

    def section(self, stage: Stage[Any]) -> Any:
        """The stage's section; None where the config leaves it out."""
        found = getattr(self.config, stage.section)
        return SECTIONS[stage](self) if found is not None and stage in SECTIONS else found

    def add(
        self,
        stage: Stage[Any],
        section: Any = None,
        role: str = "",
        gives: str = "",
        leaves: bool = True,
        seed: int | None = None,
        **inputs: str | Slot | None,
    ) -> Slot:
        """Add a call of the stage, whose artifact later ones read as `gives`.

        `inputs` replace the names under which roles are read; None: the role is not read. `seed` is that of
        its draws, where it is not the run's.
        """
        section = self.section(stage) if section is None else section
        found: dict[str, Slot] = {}
        for name, reads in stage.reads.items():
            of = inputs.get(name, reads.of or name)
            if isinstance(of, Slot):
                found[name] = of
            elif of is not None and reads.group:
                found |= self.groups[of]
            elif of is not None and reads.where(section) and (of in self.names or not reads.optional):
                if of not in self.names:
                    raise ValueError(
                        f"stage {stage.name} reads '{of}', which no stage before it and no entry of MODELS "
                        f"or DATA gives; known are {', '.join(sorted(self.names))}"
                    )
                found[name] = self.names[of]
        left = stage.leaves if leaves else None
        step = Step(stage, role, section, found, left, gives or stage.gives, seed)
        self.steps.append(step)
        self.names[step.gives] = slot = Slot(step.id)
        if leaves:
            self.names |= dict.fromkeys(stage.also_gives(section), slot)
        if step.leaves is not None:
            self.names[MODEL] = replace(slot, folder=step.leaves.folder)
            self.evaluate(step.leaves.name, self.names[MODEL])
        return slot

    def recover(self, section: Any, role: str) -> Slot:
        """Add a recovery that another one follows, which goes on from its model."""
        self.recoveries += 1
        made = self.add(recover, section, role, gives=f"recovery_{self.recoveries}", leaves=False)
        self.names[MODEL] = replace(made, folder=recover.leaves.folder if recover.leaves else "")
        return made

    def evaluate(self, name: str, model: Slot, final: bool = True, shown: bool = True) -> None:
        """Score a model; all but the first, the dense one, are compared with that.

        One that is not `final` is a further form of the last model, one that is not `shown` on the way to it.
        """
        dense = self.names[SOURCE] if self.groups[SCORES] else None
        scores = self.add(evaluate, role=name, gives=name, model=model, dense=dense)
        if shown:
            self.groups[MODELS][name], self.groups[SCORES][name] = model, scores
        if final:
            self.names[FINAL] = scores


def _calibrate_general(steps: Steps) -> None:
    """Random windows of open-domain text, as many as of calibration, where the criterion uses it."""
    if "general_text" in steps.names:
        changes = {"method": "random", "text": steps.config.prune.general}
        section = steps.config.calibrate.model_copy(update=changes)
        steps.add(calibrate, section, "general", gives="general", text="general_text")


def _prune_in_rounds(steps: Steps) -> None:
    """The rounds of a pruning schedule but the last, which is the run's own `score`, `plan` and `prune`.

    Each round ends in an artifact of the dense shape, so that every plan is for the dense model. Training
    between rounds is the recover stage's, each with its share of the steps, one after another through the
    same batches and one schedule of the learning rate. The rows that it trains on are selected once, on the
    model masked at once to the whole target before any training.
    """
    rounds = schedule_of(steps.config.prune)
    trains = steps.config.recover is not None and len(rounds) > 1
    if trains:
        if steps.config.select is not None:
            steps.add(score, role="for selection")
            steps.add(plan, role="for selection")
            steps.add(mask, Masking(), "for selection", gives="masked")
            if steps.section(dense_words) is not None:
                steps.add(dense_words)
            steps.add(select, pruned="masked")
            if steps.section(answer) is not None:
                steps.add(answer)
        if steps.section(teacher) is not None:
            steps.add(teacher)
    for number, one in enumerate(rounds, 1):
        if trains and one.train > steps.trained:
            section = PartOfRecovery(**_values(steps.config.recover), begin=steps.trained, end=one.train)
            steps.recover(section, f"round {number - 1}" if number > 1 else "dense")
        steps.trained = one.train
        if number < len(rounds):
            _prune_round(steps, one, f"round {number}")


def _prune_round(steps: Steps, one: Round, role: str) -> None:
    """A round that masks or shrinks; units that are masked stay removed."""
    section = PruneRound(**_values(steps.config.prune), done=one.done)
    steps.add(score, section, role)
    steps.add(plan, section, role)
    if one.regrow:
        scored = steps.names["scores"]
        growth = section.model_copy(update=GROWTH)
        steps.add(score, growth, f"growth {role}", gives="growth", general=None)
        steps.add(regrow, Regrowth(section.units, one.regrow), role, scores=scored)
    steps.add(mask, Masking(0.0 if one.shrink is None else 1 - one.shrink), role, gives=MODEL)
    if one.shrink is None:
        steps.names["before"] = steps.names["plan"]


def _arms(steps: Steps) -> list[SelectConfig]:
    """The selections of a run, its own and those that it is compared with."""
    return list(steps.config.select.arms.values()) if steps.config.select is not None else []


def _values(section: Any) -> dict[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields}


def _try_recovery(steps: Steps) -> None:
    """A short recovery on random rows, by which each selection that asks for it sees what heals."""
    arms, recovery = _arms(steps), steps.config.recover
    config = next((one for one in arms if tries_recovery(one)), None)
    if config is None or recovery is None:
        return
    tokens = config.paser.pilot_tokens
    alone = {"method": "random", "paser": PaserConfig(), "capabilities": None, "compare": ()}
    drawn = config.model_copy(update=alone)
    rows = steps.add(select, drawn, "for pilot", gives="pilot_rows", leaves=False)
    short = {
        "tokens": tokens,
        "text": (),
        "rows_weight": None,
        "ladder": None,
        "budget": None,
        "continued": None,
    }
    section = recovery.model_copy(update={**short, "method": recovery.methods[-1]})
    made = steps.add(
        recover, section, "pilot", gives="pilot_recovery", leaves=False, selection=rows, recovery_text=None,
        teacher=None,
    )  # fmt: skip
    steps.names["pilot"] = replace(made, folder=recover.leaves.folder if recover.leaves else "")


def _evaluate_dense(steps: Steps) -> None:
    """Not before the plan, which may find that the target cannot be reached."""
    steps.evaluate(DENSE, steps.names[SOURCE])


def _recover(steps: Steps, stage: Stage[Any]) -> None:
    """One training, or the rungs of a ladder, and behind them what goes on from there."""
    config, pruned = steps.section(stage), steps.names[MODEL]
    last = _climb(steps, stage, config) if config.ladder is not None else config
    if config.continued is None:
        steps.add(stage, last)
        _compare_selections(steps, pruned)
        return
    role = f"rung {last.number}" if isinstance(last, Rung) else "first"
    steps.names["rung"] = steps.recover(last, role)
    steps.add(stage, continuation(config))


def _compare_selections(steps: Steps, pruned: Slot) -> None:
    """Other selections, and the run's own by other seeds, each recovered from the pruned model and judged."""
    config, recovered = steps.config.select, recover.leaves
    if config is None or not config.compare or recovered is None:
        return
    for number in range(config.compare_seeds):
        for name, section in config.arms.items():
            seed = steps.config.seed + number
            role = role_of(name, seed)
            scores, rows = steps.names[recovered.name], steps.names["training_rows"]
            if number or section is not config:
                rows, made = _recovered(steps, section, role, seed, pruned)
                scores = steps.add(
                    evaluate, role=role, gives=f"scores of {role}", model=made, dense=steps.names[SOURCE]
                )
            steps.groups[RIVALS][role] = scores
            steps.groups[CHOICES][f"{CHOSEN}{role}"] = rows
    steps.add(compare_selections, config)


def _recovered(steps: Steps, section: SelectConfig, role: str, seed: int, pruned: Slot) -> tuple[Slot, Slot]:
    """The rows that a selection chooses, and the pruned model recovered on them."""

    def add(stage: Stage[Any], section: Any, **inputs: Slot) -> Slot:
        return steps.add(stage, section, role, f"{stage.gives} of {role}", False, seed, **inputs)

    rows = add(select, section, pruned=pruned)
    if section.targets != "original":
        rows = add(answer, section, selection=rows)
    made = add(recover, steps.section(recover), pruned=pruned, selection=rows)
    return rows, replace(made, folder=recover.leaves.folder if recover.leaves else "")


def _climb(steps: Steps, stage: Stage[Any], config: RecoverConfig) -> RecoverConfig:
    """All rungs but the last, which is returned; each is judged, so that the next one need not be climbed."""
    # A rung is a model, no file yet.
    bounds = {**_values(steps.config.gate), "max_file_ratio": None} if steps.config.gate is not None else {}
    gated = any(value not in (None, {}) for name, value in bounds.items() if name != "of")
    climbed = rungs(config, gated)
    for one in climbed:
        role = f"rung {one.number}"
        if gated:
            before = f"before {role}"
            steps.add(gate, GateOfRung(**bounds), before, gives="verdict", final=steps.names[FINAL])
        if one is not climbed[-1]:
            steps.names["rung"] = steps.recover(one, role)
            steps.evaluate(f"{role} {one.method}", steps.names[MODEL], shown=False)
    return climbed[-1]


def _call(steps: Steps, stage: Stage[Any]) -> None:
    """One call, which reads what the stage declares."""
    steps.add(stage)


def _quantize(steps: Steps, stage: Stage[Any]) -> None:
    """Each file of few bits, and the dense model's that they are compared with, each with its scores."""
    section: QuantizeConfig = steps.section(stage)
    dense = steps.names[SOURCE]
    steps.groups[QUANTIZED] = _files(steps, "", steps.names[MODEL], section.formats)
    steps.groups[JUDGED] = {scores_of(name): steps.groups[SCORES][name] for name in section.formats}
    if keeps_file(steps.config):
        steps.evaluate(SOURCE_FILE, steps.names[SOURCE_FILE], final=False)
    wanted = steps.config.compare.baselines if steps.config.compare is not None else ()
    if compared := baselines(section.formats, wanted):
        _files(steps, DENSE, dense, compared, plan=None)


def _files(
    steps: Steps, of: str, model: Slot, formats: Sequence[str], plan: str | None = "plan"
) -> dict[str, Slot]:
    """A model in each of the formats with its scores, by the format's name behind `of`."""
    licence = next((one.licence for one in steps.credits if one.role == CREDIT), None)
    called = model_name(steps.config.model.source) + ("" if plan is None else "-pruned")
    wanted = [Quantization(steps.config.quantize, name, called, licence) for name in formats]
    measured: Slot | None = None
    if any(one.needs == "importance" for one in wanted):
        measured = steps.add(importance, role=of, gives=f"{of} importance".lstrip(), model=model)
    found = {}
    for one in wanted:
        name = f"{of} {one.format}".lstrip()
        found[name] = steps.add(
            quantize, one, name, file_of(name), model=model, importance=measured, plan=plan
        )
        steps.evaluate(name, found[name], final=False)
    return found


def _hold_against_bounds(steps: Steps, stage: Stage[Any]) -> None:
    """The gate, about the scores of the final model or of the file of few bits that the section names."""
    named = steps.section(stage).of
    steps.add(stage, final=steps.groups[SCORES][named] if named else steps.names[FINAL])


def _rest_of_recovery(steps: Steps) -> Any:
    """The rest of the training after the rounds of a schedule."""
    section = steps.config.recover
    return PartOfRecovery(**_values(section), begin=steps.trained) if steps.trained else section


def _preparing(steps: Steps) -> Any:
    """The section of selection where rows are made of documents."""
    section = steps.config.select
    return section if section is not None and section.documents else None


def _keeping_words(steps: Steps) -> Any:
    """The section of selection where it reads the dense model's words from a file."""
    return next((one for one in _arms(steps) if reads_kept_words(one)), None)


def _answering(steps: Steps) -> Any:
    """The section of selection where the dense model answers the rows."""
    section = steps.config.select
    return section if section is not None and section.targets != "original" else None


def _teaching(steps: Steps) -> Any:
    """The section of recovery where it reads the dense model's words from a file."""
    section = steps.config.recover
    return section if section is not None and section.taught_from_disk else None


def _export_section(steps: Steps) -> Export:
    """With what the model card says of the sources and of each stage."""
    credits = tuple(credit for credit in steps.credits if credit.role in SHAPING)
    given = ((stage, steps.section(stage)) for stage in STAGES if stage.card is not None)
    lines = [stage.card(section) for stage, section in given if stage.card and section is not None]
    return Export(steps.config.export, credits, tuple(line for line in lines if any(line)))


STAGES: tuple[Stage[Any], ...] = (
    prepare,
    filter_rows,
    pool,
    evaluation_data,
    calibrate,
    score,
    plan,
    prune,
    dense_words,
    select,
    answer,
    teacher,
    recover,
    sparsify,
    quantize,
    gate,
    export,
    # Once and last: speeds compare only where they are measured together.
    measure,
    draft,
)
"""The stages of a run in their order; one whose section the config leaves out is left out."""
BEFORE: dict[Stage[Any], tuple[Callable[[Steps], None], ...]] = {
    score: (_calibrate_general, _prune_in_rounds),
    prune: (_evaluate_dense,),
    select: (_try_recovery,),
}
"""Further steps before the first call of a stage."""
SECTIONS: dict[Stage[Any], Callable[[Steps], Any]] = {
    prepare: _preparing,
    dense_words: _keeping_words,
    answer: _answering,
    teacher: _teaching,
    recover: _rest_of_recovery,
    export: _export_section,
}
"""Sections that hold more than the config's, or less."""

CALLS: dict[Stage[Any], Callable[[Steps, Stage[Any]], None]] = {
    recover: _recover,
    quantize: _quantize,
    gate: _hold_against_bounds,
}
"""How a stage is called that is called more than once, or reads what its section names."""


def section_of(stage: str) -> str:
    """Key of the run config that the stage of this name is given; empty where it has none of its own."""
    return next((one.section for one in (*STAGES, evaluate) if one.name == stage), "")


def tagged() -> dict[str, str]:
    """The tags of a registered version that name an artifact, each with the stage that makes it."""
    return {"source_digest": acquire_model.name, **{one.gives: one.name for one in STAGES if one.tagged}}


def models() -> list[str]:
    """Names of all models that a run may make, in their order."""
    return [stage.leaves.name for stage in (acquire_model, *STAGES) if stage.leaves is not None]


class Artifacts(dict[StepId, ArtifactRef]):
    """The artifacts of a run's steps."""

    def __init__(self, steps: Steps, known: Mapping[StepId, ArtifactRef] | None = None) -> None:
        super().__init__(known or {})
        self.steps = steps

    def make(self, run: Run, steps: Iterable[Step], device: str | None = None) -> None:
        """Run those of the steps whose artifacts are not here yet, in their order, on the config's device."""
        config = self.steps.config
        device = device or preflight.device(config.model.device)
        for step in steps:
            if step.id not in self:
                job = job_of(config, step.section, device, step.seed)
                self[step.id] = run.make(step.stage, job, self.inputs(step), step.role)

    def input(self, slot: Slot) -> Input:
        """The artifact, or the folder in it, that a step reads."""
        ref = self[slot.step]
        return Subfolder(ref, slot.folder) if slot.folder else ref

    def of(self, name: str) -> ArtifactRef:
        """The artifact of this name; KeyError where the run has none."""
        return self[self.steps.names[name].step]

    def named(self, name: str) -> ArtifactRef | None:
        """The artifact of this name; None where the run has none, or not yet."""
        slot = self.steps.names.get(name)
        return self.get(slot.step) if slot else None

    def group(self, name: str) -> dict[str, ArtifactRef]:
        """The artifacts of a group by their names."""
        return {one: self[slot.step] for one, slot in self.steps.groups[name].items() if slot.step in self}

    def inputs(self, step: Step) -> dict[str, Input]:
        """The inputs of a step by role, of those that are there."""
        return {role: self.input(slot) for role, slot in step.inputs.items() if slot.step in self}

    def reported(self) -> dict[str, ArtifactRef]:
        """The artifacts that the report reads, by name; the last where several steps give one name."""
        last = {step.gives: step for step in self.steps if step.stage.reported}
        return {name: self[step.id] for name, step in last.items() if step.id in self}


def job_of(config: RunConfig, section: Any, device: str, seed: int | None = None) -> Job[Any]:
    """A job of the run that `config` describes; `seed` in place of the run's."""
    model = config.model
    if isinstance(section, RecoverConfig):
        section = section.on_machine(preflight.gpus(config, device))
    drawn = config.seed if seed is None else seed
    return Job(section, drawn, device, model.dtype, model.trust_remote_code, model.spread)
