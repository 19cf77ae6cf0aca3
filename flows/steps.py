"""The stages of a compression run in their order, each fed with references. Wiring only.

Everything that can be found cheaply comes first: all data is brought here (`acquisition`), the pool is held
against its budget, and text and tasks of the evaluation are tried before a weight is loaded. Each model is
judged as soon as it exists; dense scores are shared by all runs on that model, because their key is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from resprout.configs.schema import RunConfig
from resprout.configs.stages import PartOfRecovery
from resprout.flows.acquisition import Acquired, job_of
from resprout.flows.rounds import Begun, before_last
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.evaluate.data_stage import evaluation_data
from resprout.tasks.evaluate.stage import evaluate
from resprout.tasks.export.card import SHAPING
from resprout.tasks.export.stage import Export, export
from resprout.tasks.gate.stage import gate
from resprout.tasks.job import Job
from resprout.tasks.measure.stage import measure
from resprout.tasks.prune.stage import plan, prune, score
from resprout.tasks.recover.stage import recover
from resprout.tasks.run import Run
from resprout.tasks.select.pool_stage import pool
from resprout.tasks.select.stage import select
from resprout.tasks.sparsify.stage import sparsify
from resprout.tasks.stage import Input, Part

C = TypeVar("C")


@dataclass
class Made:
    """References to all that a run made; None where the config leaves a stage out."""

    dense: ArtifactRef
    plan: ArtifactRef
    export: ArtifactRef
    gate: ArtifactRef | None = None
    selection: ArtifactRef | None = None
    recovery: ArtifactRef | None = None
    pool: ArtifactRef | None = None
    sparsified: ArtifactRef | None = None
    scores: dict[str, ArtifactRef] = field(default_factory=dict)
    models: dict[str, Input] = field(default_factory=dict)
    """The models by name, in the order in which they are made."""
    speeds: ArtifactRef | None = None
    trainings: tuple[ArtifactRef, ...] = ()
    """Parts of the recovery that came before the last cut."""


class Steps:
    """The stages of one run after those that acquire."""

    def __init__(self, config: RunConfig, run: Run, acquired: Acquired) -> None:
        self.config = config
        self.run = run
        self.dense, self.rows, self.encoder = acquired.dense, acquired.rows, acquired.encoder
        self.text, self.tasks = acquired.text, acquired.tasks
        self.calibration_text, self.general_text = acquired.calibration_text, acquired.general_text
        self.credits = acquired.credits
        self.scores: dict[str, ArtifactRef] = {}
        self.models: dict[str, Input] = {}

    def job(self, section: C) -> Job[C]:
        """A job of this run."""
        return job_of(self.config, section)

    def all(self) -> Made:
        """From what was acquired to exports; the gate's verdict stops a registration, no export."""
        config, run = self.config, self.run
        counted = None
        if self.rows is not None and config.select is not None:
            counted = pool(run, self.job(config.select), {"rows": self.rows, "dense": self.dense})
        judged = {"text": self.text} if self.text else {}
        evaluation_data(
            run, self.job(config.evaluate), {"dense": self.dense, **judged, **self.tasks}, "evaluation data"
        )
        text = {"text": self.calibration_text} if self.calibration_text else {}
        calibration = calibrate(run, self.job(config.calibrate), {"model": self.dense, **text})
        begun = before_last(self, calibration)
        seen = {"model": begun.model, "calibration": calibration}
        scores = score(run, self.job(config.prune), {**seen, **self.general})
        planned = plan(run, self.job(config.prune), {**seen, **begun.before, "scores": scores})
        self.judge("dense", self.dense)
        pruned = prune(run, self.job(config.prune), {**seen, "plan": planned})
        self.judge("pruned", pruned)
        selection, recovery = self.grow_back(pruned, begun)
        final: Input = Part(recovery, "model") if recovery else pruned
        sparse = None
        if config.sparsify is not None:
            given: dict[str, Input] = {"model": final, "calibration": calibration}
            sparse = sparsify(run, self.job(config.sparsify), given)
            final = Part(sparse, "model")
            self.judge("sparsified", final)
        verdict = None
        if config.gate is not None:
            # Judged in the order in which they are made.
            last = list(self.scores.values())[-1]
            verdict = gate(run, self.job(config.gate), {"dense": self.scores["dense"], "final": last})
        credits = tuple(credit for credit in self.credits if credit.role in SHAPING)
        zeros = f"{config.sparsify.pattern} by {config.sparsify.method}" if config.sparsify else None
        method = config.recover.method if config.recover else None
        told = Export(config.export, credits, method, begun.schedule, zeros)
        exported = export(run, self.job(told), {"model": final, "plan": planned, "source": self.dense})
        # Once and last: speeds compare only where they are measured together.
        speeds = measure(run, self.job(config.measure), self.models) if config.measure is not None else None
        later = (selection, recovery, counted, sparse)
        return Made(
            self.dense, planned, exported, verdict, *later, self.scores, self.models, speeds, begun.trainings
        )

    @cached_property
    def general(self) -> dict[str, Input]:
        """Random windows of open-domain text, where the criterion looks at it, as many as of calibration."""
        if self.general_text is None:
            return {}
        section = self.config.calibrate.model_copy(
            update={"method": "random", "text": self.config.prune.general}
        )
        given = {"model": self.dense, "text": self.general_text}
        return {"general": calibrate(self.run, self.job(section), given, "calibrate general")}

    @property
    def recovers(self) -> bool:
        """Whether the config has a selection and a recovery."""
        return self.config.select is not None and self.config.recover is not None and self.rows is not None

    def grow_back(self, pruned: ArtifactRef, begun: Begun) -> tuple[ArtifactRef | None, ArtifactRef | None]:
        """Selection and what is left of recovery, where the config has them."""
        if not self.recovers:
            return None, None
        chosen = begun.selection or self.choose(pruned)
        recovery = self.train(pruned, chosen, begin=begun.trained)
        self.judge("recovered", Part(recovery, "model"))
        return chosen, recovery

    def choose(self, pruned: ArtifactRef) -> ArtifactRef:
        """The rows to train on, of a config that recovers."""
        given = {"dense": self.dense, "pruned": pruned, "rows": self.rows, "embedder": self.encoder}
        return select(
            self.run, self.job(self.config.select), {role: ref for role, ref in given.items() if ref}
        )

    def train(
        self,
        pruned: Input,
        chosen: ArtifactRef,
        begin: float = 0.0,
        end: float = 1.0,
        label: str | None = None,
    ) -> ArtifactRef:
        """The recovery of a config that recovers, from `begin` to `end` of its steps."""
        config = self.config.recover
        if config is not None and (begin, end) != (0.0, 1.0):
            config = PartOfRecovery(**config.model_dump(), begin=begin, end=end)
        teacher = {"dense": self.dense} if config is not None and config.distill_weight > 0 else {}
        given = {"pruned": pruned, "selection": chosen, **teacher}
        return recover(self.run, self.job(config), given, label)

    def judge(self, name: str, model: Input) -> None:
        """Scores of one model; divergence where it is not the dense one itself."""
        run, config = self.run, self.config
        given: dict[str, Input] = {"model": model, **self.tasks}
        if self.text is not None:
            given["text"] = self.text
        if name != "dense":
            given["dense"] = self.dense
        self.models[name] = model
        self.scores[name] = evaluate(run, self.job(config.evaluate), given, f"evaluate {name}")
