"""The flow of a sweep: each variant a run of `compress`, as many at once as there are workers.

Variants share the store, so a stage that several need is made once: the first takes its lease, the others
wait for it and find the result. Each variant is the unit of work here, so its stages are not split further.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run

from resprout.configs.errors import BadInput, ResproutError
from resprout.configs.load import Loaded, arrived, load, travelling
from resprout.configs.result import RunResult
from resprout.configs.sweep import SweepResult, Variant, VariantResult, load_sweep
from resprout.flows.flow_run import note_own_process
from resprout.flows.rerun_command import config_digest, public_overrides
from resprout.flows.rivals import Rivals
from resprout.flows.run_name import run_name
from resprout.flows.runners import apart, lost, started, submit
from resprout.flows.session import Session
from resprout.flows.sweep_session import SweepSession, prepared, unsplit
from resprout.infra.environment import prepare
from resprout.infra.mlflow.tracking import SWEEP_NAME, VARIANT
from resprout.infra.prefect.flow_runs import SWEEP

if TYPE_CHECKING:
    from resprout.flows.search import Search

_current: ContextVar[SweepSession | None] = ContextVar("sweep", default=None)
_HERE: dict[str, SweepSession] = {}
"""Sweeps of this process by the id of their flow run."""


def sweep_here(path: Path, overrides: list[str], session: SweepSession) -> SweepResult:
    """Run the sweep in this process, filling the session's result."""
    token = _current.set(session)
    try:
        sweep(str(path), public_overrides(overrides))
    finally:
        _current.reset(token)
    return session.result


def _run_name() -> str:
    """Name of the flow run that begins."""
    session = _current.get()
    return run_name(session.config.name if session is not None else "sweep")


@flow(name=SWEEP, flow_run_name=_run_name, validate_parameters=False)
def sweep(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Run all variants of the sweep at path `config`; `overrides` are key=value, set in all of them."""
    session = _current.get() or prepared(*load_sweep(Path(config), overrides or []))
    prepare(session.base.config.infra, session.base.home)
    note_own_process()
    began = time.perf_counter()
    own = str(flow_run.id)
    session.result.variants += [
        _left_out(one, session) for one in session.variants if one.name in session.unfit
    ]
    # MLflow reads its environment when it is imported.
    from resprout.flows.search import Search
    from resprout.flows.sweep_run import describe, sweep_run
    from resprout.flows.sweep_speeds import measure_variants

    search = Search(Path(config), overrides or [], session) if session.config.search is not None else None
    with sweep_run(session) as run:
        session.result.mlflow_run_id = run.id
        _run_variants(session, search, own, run.id)
        session.result.front = search.front() if search is not None else None
        order = [variant.name for variant in session.variants]
        session.result.variants.sort(key=lambda one: order.index(one.name))
        try:
            measure_variants(session, run)
        except ResproutError as error:
            session.result.message = str(error)
        session.result.page = str(_page(session))
        _conclude(session.result, began)
        describe(run, session.result)
    return session.result.model_dump(mode="json")


def _run_variants(session: SweepSession, search: Search | None, own: str, parent: str) -> None:
    """Run the variants of a list at once, and those of a search as they are proposed, one for each worker."""
    infra = session.base.config.infra
    with ExitStack() as at_end:
        _HERE[own] = session
        at_end.callback(_HERE.pop, own)
        runner = at_end.enter_context(started(infra))

        def submitted(variant: Variant, rivals: Rivals | None = None) -> PrefectFuture[Any]:
            return submit(runner, RUN, _asked(variant, session, own, parent, rivals))

        def end(ended: VariantResult) -> None:
            if search is not None:
                search.learn(ended)
            session.result.variants.append(ended)
            session.ended(ended)

        try:
            at_work = {submitted(one): one for one in session.to_run} if search is None else {}
            while at_work or (search is not None and search.left > 0):
                while search is not None and search.left > 0 and len(at_work) < infra.workers:
                    proposed = search.propose()
                    if isinstance(proposed, VariantResult):
                        end(proposed)
                    else:
                        at_work[submitted(proposed, search.rivals)] = proposed
                if at_work:
                    future = next(as_completed(list(at_work)))
                    end(_ended(at_work.pop(future), future))
        except BaseException:
            # Before the runner ends, which waits for its threads.
            session.interrupt()
            raise


def _page(session: SweepSession) -> Path:
    """The page that compares the variants, where a person looks for it: <home>/reports/<sweep>/sweep.html.

    Its charts are files beside it.
    """
    from resprout.flows.compare_reports import compare_variants

    folder = session.base.home / "reports" / session.config.name
    folder.mkdir(parents=True, exist_ok=True)
    found = compare_variants(session.result, session.config.base)
    for chart in found.charts:
        (folder / chart.file_name).write_text(chart.file, encoding="utf-8")
    path = folder / "sweep.html"
    path.write_text(found.text, encoding="utf-8")
    return path


def _left_out(variant: Variant, session: SweepSession) -> VariantResult:
    result = RunResult(status="bad_input", exit_code=2, message=session.unfit[variant.name])
    return VariantResult(name=variant.name, settings=variant.settings, left_out=True, result=result)


def _ended(variant: Variant, future: PrefectFuture[Any]) -> VariantResult:
    try:
        result = RunResult.model_validate(future.result())
    except Exception as error:
        # A fault of the runner itself; what the variant raised is in its result.
        result = RunResult(status="failed", exit_code=1)
        result.fail(lost(error, f"variant {variant.name}"))
    return VariantResult(name=variant.name, settings=variant.settings, result=result)


def _conclude(result: SweepResult, began: float) -> None:
    result.seconds = round(time.perf_counter() - began, 3)
    found = {one.result.status for one in result.variants if not one.left_out}
    if result.message:
        return
    if found <= {"done", "stopped"}:
        result.status, result.exit_code = "done", 0
    elif found <= {"done", "stopped", "gate_not_passed"}:
        result.status, result.exit_code = "gate_not_passed", 3


def _asked(
    variant: Variant, session: SweepSession, own: str, parent: str, rivals: Rivals | None
) -> dict[str, Any]:
    loaded = variant.loaded
    return {
        "name": variant.name,
        "config": str(loaded.path.absolute()),
        "overrides": public_overrides(variant.overrides),
        "infra": travelling(loaded),
        "digest": config_digest(loaded),
        "sweep": session.config.name,
        "own": own,
        "parent": parent,
        "rivals": rivals.as_data() if rivals is not None else None,
    }


def _run(
    name: str,
    config: str,
    overrides: list[str],
    infra: dict[str, Any],
    digest: str,
    sweep: str,
    own: str,
    parent: str | None,
    rivals: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of one variant, as plain data; a variant that fails has a result too."""
    began = time.perf_counter()
    watched = _HERE.get(own)
    session = Session(tags={SWEEP_NAME: sweep, VARIANT: f"{own}/{name}"}, parent=parent)
    session.rivals = Rivals.from_data(rivals) if rivals is not None else None
    if watched is not None:
        session.display = watched.display(name)
        watched.running.append(session)
        session.interrupted = watched.interrupted
    try:
        loaded = watched.loaded(name) if watched else _loaded(config, overrides, infra, digest)
        prepare(loaded.config.infra, loaded.home)
        # MLflow reads its environment when it is imported.
        from resprout.flows.compress import compress_here

        apart(lambda: compress_here(loaded, overrides, session))
    except Exception as error:
        session.result.fail(error)
    session.result.seconds = round(time.perf_counter() - began, 3)
    return session.result.model_dump(mode="json")


RUN = Task(
    fn=_run, name="variant", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retries=0
)
"""One variant; its stages are what is kept and tried again."""


def _loaded(config: str, overrides: list[str], infra: dict[str, Any], digest: str) -> Loaded:
    """The variant as this process reads it; BadInput where that is not what was sent."""
    loaded = load(Path(config), overrides)
    place = arrived(infra)
    found = replace(unsplit(loaded, place), home=Path(place.home or loaded.home), infra=infra)
    if config_digest(found) != digest:
        raise BadInput(
            f"{config} with {' '.join(overrides)} is another config on this worker; give it the same files "
            "and the same RESPROUT_* variables"
        )
    return found


def forecasts(session: SweepSession, price: float | None = None) -> dict[str, Any]:
    """What the stages of each variant would do, and what all of them take together; runs none of them.

    A stage that several variants share counts once in the sum, and among the seconds of the first of them.
    """
    first = session.base
    prepare(first.config.infra, first.home)
    from resprout.flows.dry_run import Outlook, StagePlan, look_up, summary
    from resprout.flows.inputs import Sources
    from resprout.flows.stages import Steps
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.store import ArtifactStore

    infra = first.config.infra
    tracker = Tracker(infra.mlflow, first.home)
    store = ArtifactStore.from_config(infra.store, first.home)
    outlook = Outlook(store, tracker)
    price = infra.price_per_hour if price is None else price
    every: dict[str, StagePlan] = {}
    variants = []
    # What a search will propose is not known: it is the base as it is that says what one variant takes.
    for one in session.to_run or [Variant(first.config.name, {}, [], first)]:
        config = one.loaded.config
        sources = Sources(one.loaded, tracker.uri)
        steps = Steps(config, sources.sections, sources.credits)
        plans = outlook.plans(config, look_up(steps, store)[1], sources.shape)
        shared = [plan for plan in plans if plan.forecast.key in every]
        own = [plan for plan in plans if plan.forecast.key not in every]
        every |= {plan.forecast.key: plan for plan in own}
        variants.append(
            {
                "name": one.name,
                "settings": one.settings,
                "stages": [plan.as_dict() for plan in plans],
                "shared": [plan.forecast.step.label for plan in shared if not plan.forecast.cached],
                **summary(own, price),
            }
        )
    return {
        "name": session.config.name,
        "variants": variants,
        "left_out": session.unfit,
        **summary(every.values(), price),
    }
