"""A search: Optuna proposes the variants of a sweep by what came of the ones before.

Its study is a journal in <home>/searches, so that the same command goes on where it was ended: variants that
were at work then are proposed again, and find their stages in the cache. Another base, other objectives or
other values are another study.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.configs.result import RunResult
from resprout.configs.schema import RunConfig
from resprout.configs.search import SIZES, OptunaConfig, Range
from resprout.configs.sweep import NotAVariant, Proposals, Variant, VariantResult
from resprout.flows.rerun_command import config_digest
from resprout.flows.rivals import Rivals, front
from resprout.flows.sweep_session import SweepSession, fault
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.tasks.evaluate.stage import kl_metric, perplexity_metric

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import Trial

FOLDER = "searches"
RESULT = "result"
"""Attribute of a trial with the result of its variant, as JSON."""
SETTINGS = "settings"
SHORT = 12


def metric_names(search: OptunaConfig, config: RunConfig) -> tuple[tuple[str, int], ...]:
    """The metric behind each objective, and 1 where less of it is better, else -1.

    Raises:
        BadInput: the evaluation of this config has no such metric.
    """
    judged, tasks = config.evaluate.perplexity, config.evaluate.zero_shot
    known = {name: name for name in SIZES}
    known |= {one: one for one in (perplexity_metric(judged), kl_metric(judged))}
    known |= {"perplexity": perplexity_metric(judged), "divergence": kl_metric(judged)}
    if tasks is not None:
        known["accuracy"] = "zero_shot_mean_acc"
    found = []
    for one in search.judged_by:
        # Which accuracies a task has, its file says; what is missing in the end fails its variant.
        if one.name not in known and not (tasks is not None and one.name.endswith(("_acc", "_acc_norm"))):
            why = "; accuracy needs evaluate.zero_shot" if one.name == "accuracy" else ""
            raise BadInput(
                f"search.optuna.objectives names '{one.name}', which the base's evaluation does not have; "
                f"give one of {', '.join(known)}{why}"
            )
        found.append((known.get(one.name, one.name), 1 if one.minimize else -1))
    return tuple(found)


class Search:
    """The trials of one search, and the variants that they are."""

    def __init__(self, path: Path, overrides: list[str], session: SweepSession) -> None:
        if session.config.search is None:
            raise ValueError("the sweep has no search")
        self.config = session.config.search.optuna
        self.session = session
        self.proposals = Proposals(path.expanduser(), session.config, overrides)
        self.metrics = metric_names(self.config, session.base.config)
        self.trials: dict[str, Trial] = {}
        """Those at work, by the names of their variants."""
        self.points: dict[str, tuple[float, ...]] = {}
        """Signed scores of the last models of finished variants."""
        self.pruned: dict[str, tuple[float, ...]] = {}
        """Signed scores of pruned models, stopped ones included."""
        self.study = self._study()
        self._take_up()

    @property
    def left(self) -> int:
        """How many trials are still to be proposed."""
        return self.config.trials - len(self.session.variants)

    @property
    def rivals(self) -> Rivals | None:
        """What the next variant is held against; None where dominated ones go on."""
        return Rivals(self.metrics, dict(self.pruned)) if self.config.stop_dominated else None

    def propose(self) -> Variant | VariantResult:
        """The next variant, or the result of one that the base does not take or that fits no model."""
        trial = self.study.ask()
        settings = {key: _drawn(trial, key, values) for key, values in self.config.over.items()}
        trial.set_user_attr(SETTINGS, settings)
        index = trial.number + 1
        try:
            variant = self.proposals.variant(index, settings)
            why = fault(variant)
        except NotAVariant as error:
            variant, why = self.proposals.stand_in(index, settings), str(error)
        self.session.variants.append(variant)
        self.trials[variant.name] = trial
        if why is None:
            return variant
        refused = RunResult(status="bad_input", exit_code=2, message=why)
        return VariantResult(name=variant.name, settings=settings, left_out=True, result=refused)

    def learn(self, ended: VariantResult) -> None:
        """Tell the study what came of a variant."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial = self.trials.pop(ended.name)
        self._note(ended)
        stopped = ended.result.status == "stopped"
        values, state = None, TrialState.PRUNED if stopped else TrialState.FAIL
        if ended.name in self.points:
            signed = zip(self.points[ended.name], self.metrics, strict=True)
            values, state = [sign * value for value, (_, sign) in signed], TrialState.COMPLETE
        # Another process with the same search takes trials for abandoned that it did not begin.
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr(RESULT, ended.model_dump(mode="json"))
            self.study.tell(trial, values, state, skip_if_finished=True)

    def front(self) -> list[str]:
        """Names of the finished variants that no other dominates."""
        return front(self.points)

    def _note(self, ended: VariantResult) -> None:
        models = ended.result.made_models()
        scored = Rivals(self.metrics, {})
        if "pruned" in models and (point := scored.point(models["pruned"].metrics)) is not None:
            self.pruned[ended.name] = point
        if ended.result.status in ("done", "gate_not_passed") and models:
            last = scored.point([*models.values()][-1].metrics)
            if last is not None:
                self.points[ended.name] = last

    def _study(self) -> Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder = self.session.base.home / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "base": config_digest(self.session.base),
            **self.config.model_dump(mode="json", exclude={"trials", "sampler", "seed", "stop_dominated"}),
        }
        name = f"{self.session.config.name}-{sha256_hex(canonical_json(asked))[:SHORT]}"
        return optuna.create_study(
            study_name=name,
            storage=JournalStorage(JournalFileBackend(str(folder / f"{name}.log"))),
            directions=["minimize" if sign > 0 else "maximize" for _, sign in self.metrics],
            sampler=_sampler(self.config),
            load_if_exists=True,
        )

    def _take_up(self) -> None:
        """Take the results of earlier trials over; those that did not end are asked again, as new trials."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False):
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)
                continue
            if RESULT not in trial.user_attrs:
                continue
            ended = VariantResult.model_validate(trial.user_attrs[RESULT])
            variant = self._again(trial.number + 1, ended)
            self.session.variants.append(variant)
            self.session.result.variants.append(ended)
            self._note(ended)

    def _again(self, index: int, ended: VariantResult) -> Variant:
        try:
            return self.proposals.variant(index, ended.settings)
        except NotAVariant:
            return self.proposals.stand_in(index, ended.settings)


def _drawn(trial: Trial, key: str, values: Range | tuple[Any, ...]) -> Any:
    if not isinstance(values, Range):
        # Optuna keeps words and numbers, and a value may be a list.
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in values]))
    if values.whole:
        return trial.suggest_int(
            key, int(values.low), int(values.high), step=int(values.step or 1), log=values.log
        )
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def _sampler(config: OptunaConfig) -> BaseSampler:
    from optuna import samplers

    kinds: Mapping[str, Callable[..., BaseSampler]] = {
        "tpe": samplers.TPESampler,
        "nsga2": samplers.NSGAIISampler,
        "random": samplers.RandomSampler,
    }
    return kinds[config.sampler](seed=config.seed)
