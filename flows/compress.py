"""The flow of a run: check, acquire, walk through the stages, conclude."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from resprout.configs.errors import ResproutError
from resprout.configs.load import Loaded, load, load_data
from resprout.configs.result import Overhead
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.check import check, check_fits, check_source
from resprout.flows.conclude import Conclusion
from resprout.flows.dry_run import look_up, to_make
from resprout.flows.flow_run import newer_due, note_own_process, refuse_endless
from resprout.flows.inputs import SOURCE, TOKENIZER, Sources, decoders, read_tokenizer
from resprout.flows.push import check_push
from resprout.flows.rerun_command import command, config_digest, public_overrides
from resprout.flows.run_name import run_name, title_of
from resprout.flows.session import Session, current, using
from resprout.flows.shards import TaskRunnerFanOut
from resprout.flows.stages import STAGES, Artifacts, Steps
from resprout.infra import identity, logs
from resprout.infra.environment import prepare
from resprout.infra.licences import check_licences
from resprout.infra.mlflow.system_metrics import system_metrics
from resprout.infra.mlflow.tracking import FLOW_RUN, PARENT, STAGE, VARIANT, WRITER, Tracker
from resprout.infra.prefect.flow_runs import FLOW, GATE_NOT_PASSED
from resprout.infra.provenance.ledger import Ledger
from resprout.infra.retry import retry_while_down
from resprout.infra.store import exports, lease
from resprout.infra.store.in_use import InUseReferences
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.data_scan import load_scan
from resprout.tasks.core.run import Run
from resprout.tasks.models.shape import Shape, shape_of
from resprout.tasks.prune.compatibility import resolve

logger = logging.getLogger(__name__)

INLINE = "config.yaml"
"""File name of a config that came with the run; the report's folder holds it under this name."""


def compress_here(loaded: Loaded, overrides: list[str], session: Session) -> None:
    """Run the flow in this process, filling the session's result."""
    session.called_at = time.perf_counter()
    session.loaded = loaded
    with using(session):
        # Prefect keeps a flow's parameters in its database, so servers and credentials do not go this way.
        compress(str(loaded.path), public_overrides(overrides))


def _run_name() -> str:
    """Name of the flow run that begins."""
    loaded, context = current().loaded, FlowRunContext.get()
    given = context.parameters if context is not None and context.parameters else {}
    return run_name(loaded.config.name if loaded else title_of(given.get("config"), given.get("overrides")))


@flow(name=FLOW, flow_run_name=_run_name, validate_parameters=False)
def compress(
    config: str | RunConfig,
    overrides: list[str] | None = None,
    claim: str | None = None,
    own: bool = False,
) -> dict[str, Any] | State[Any]:
    """Compress the model that a run config names: the path of a YAML file, or all of its sections.

    `overrides` are key=value. Of all runs with the same `claim` only the first does anything, and it ends
    where the model turns out to be an export of this store, unless those are wanted too (`own`). A session
    that has loaded the config already says what it holds; then the parameters only show it.
    """
    session = current()
    if (newer := newer_due()) is not None:
        return Completed(name="Superseded", message=f"flow run {newer} of the same schedule is due as well")
    loaded = session.loaded or _load(config, overrides or [])
    if session.called_at:
        note_own_process()
    with logs.fields(run=loaded.config.name, flow_run=flow_run.id):
        if not session.called_at:
            logs.configure(loaded.config.infra.logs)
            logs.also_to_prefect()
        try:
            refuse_endless(loaded.config.infra.prefect.restarts)
            return retry_while_down(
                lambda: _compress(loaded, overrides or [], claim, own, session),
                _outage_seconds(loaded, session),
                lambda: any(not stage.cached for stage in session.result.stages),
            )
        except ResproutError as error:
            logger.error("the run failed: %s", error, extra={"exit_code": error.exit_code})
            raise


def _outage_seconds(loaded: Loaded, session: Session) -> float:
    """A person at the command line wants to know at once, and runs the same command again."""
    return 0.0 if session.called_at else loaded.config.infra.prefect.outage_seconds


def _compress(
    loaded: Loaded, overrides: list[str], claim: str | None, own: bool, session: Session
) -> dict[str, Any] | State[Any]:
    session.result.stages.clear()
    check(loaded)
    prepare(loaded.config.infra, loaded.home)
    began = time.perf_counter()
    store = ArtifactStore.from_config(loaded.config.infra.store, loaded.home, loaded.config.infra.proof)
    store.ensure_writable()
    if claim is not None and (owner := lease.claim(store.driver, claim, flow_run.id)) != flow_run.id:
        message = f"{claim} is the claim of flow run {owner}, which was first; this one does nothing"
        logger.info("%s", message)
        return Completed(name="AlreadyClaimed", message=message)
    tracker = Tracker(loaded.config.infra.mlflow, loaded.home)
    tracker.connect()
    if loaded.config.registration is not None:
        # Before anything expensive: no unsigned entry is appended to a signed ledger.
        Ledger(store, loaded.config.registration.name).writable()
    sources = Sources(loaded, tracker.uri)
    session.remarks = [
        *check_licences(loaded.config.infra.licences, sources.credits),
        *preflight.slow_dtype(loaded.config),
    ]
    for remark in session.remarks:
        logger.warning("%s", remark)
    if loaded.config.push is not None:
        check_push(loaded.config.push.to, sources.credits)

    steps = Steps(loaded.config, sources.sections, sources.credits)

    def missing() -> list[bool]:
        return to_make(look_up(steps, store)[1])

    def check_room(shape: Shape) -> None:
        models = sum(step.writes_model for step in steps)
        preflight.check_room(loaded.config, shape, loaded.home, store.free_bytes(), models, missing)

    preflight.check_device(loaded.config.model.device, lambda: not missing())
    preflight.check_processes(loaded.config, lambda: not missing())
    if sources.shape is not None:
        check_room(sources.shape)
    digest = config_digest(loaded)
    tags = {**session.tags, **_run_tags(loaded, digest)}
    # A variant of a sweep that a cluster begins again is another flow run.
    mark = VARIANT if VARIANT in tags else FLOW_RUN
    params = compared(loaded.config, sources.model.name)
    before = tracker.resume(mark, tags[mark], params)
    run_id = before or tracker.start(loaded.config.name, tags, session.parent)
    with ExitStack() as at_end:
        at_end.enter_context(tracker.closing_on_error(run_id))
        at_end.enter_context(logs.fields(mlflow_run=run_id))
        result = session.result
        result.mlflow_run_id, result.config_digest = run_id, digest
        run = Run(
            store=store,
            tracker=tracker,
            locks=LeaseLockManager(store.driver, waiting=_told_by(session), stop=session.stop_if_interrupted),
            results=ArtifactResults.of(store, _outage_seconds(loaded, session)),
            display=session.display,
            home=loaded.home,
            mlflow_run_id=run_id,
            retries=loaded.config.infra.prefect.retries,
            retry_delay_seconds=loaded.config.infra.prefect.retry_delay_seconds,
            outage_seconds=_outage_seconds(loaded, session),
            tracked=tracker.tracked(run_id) if before else set(),
            stages=result.stages,
            cancelled=lambda: session.interrupted,
            shards=loaded.config.infra.shards,
            scan=load_scan(loaded.config.infra.data_scan) if loaded.config.infra.data_scan else None,
        )
        at_end.callback(run.locks.close)
        store.in_use = InUseReferences(store.driver, run.locks, stop=session.stop_if_interrupted)
        at_end.callback(store.in_use.close)
        tracker.log(run_id, params=params, tags={WRITER: store.in_use.writer})
        _end_dead_runs(tracker, run.locks, run_id)
        if run.shards > 1:
            run.fan_out = fan_out = TaskRunnerFanOut(loaded, run)
            at_end.callback(fan_out.close)
        # Undone first: threads stop before they are waited for.
        at_end.push(session.interrupt_on_signal)
        public = json.dumps(loaded.config.public(), indent=1, sort_keys=True)
        tracker.log_text(run_id, public, "config.json")
        if identity.dirty_patch():
            tracker.log_text(run_id, identity.dirty_patch(), "uncommitted.patch")
        artifacts = Artifacts(steps)
        artifacts.make(run, steps[: steps.acquisitions])
        dense = artifacts.of(SOURCE)
        if loaded.config.quantize is not None:
            check_source(loaded.config, _shape_of(store, dense), _tokenizer_of(store, dense))
        if unseen := decoders(loaded.config).keys() - sources.shapes.keys():
            brought = {name: _shape_of(store, artifacts.of(name)) for name in unseen}
            check_fits(loaded.config, {**sources.shapes, **brought})
            if SOURCE in brought:
                check_room(brought[SOURCE])
        if claim is not None and not own and (export := exports.holder(store, dense.digest)):
            logger.info("%s is the export %s, which is not compressed again", claim, export)
            tracker.end(run_id)
            return Completed(name="OwnVersion", message=f"{claim}: its model is the export {export}")
        conclusion = Conclusion(loaded, run, artifacts, session, command(loaded, overrides))
        pruned = steps.pruned
        with system_metrics(tracker, run_id):
            artifacts.make(run, steps[steps.acquisitions : pruned])
            if session.rivals is not None and conclusion.stop_if_dominated(session.rivals):
                tracker.end(run_id)
                return result.model_dump(mode="json")
            artifacts.make(run, steps[pruned:])
        conclusion.all()
        tracker.end(run_id)
        conclusion.seal()
        waited = run.locks.waited_seconds
        result.overhead = Overhead(
            orchestration_seconds=round(time.perf_counter() - began - run.work_seconds - waited, 3),
            waiting_seconds=round(waited, 3),
            imports_seconds=round(session.imports_seconds, 3),
            server_start_seconds=round(session.server_start_seconds, 3),
        )
        logger.info("%s", result.message or "done", extra={"status": result.status})
    if result.status == "gate_not_passed" and not session.called_at:
        # Under a name of its own, so that an automation can notify someone.
        return Failed(name=GATE_NOT_PASSED, message=result.message, data=result.model_dump(mode="json"))
    return result.model_dump(mode="json")


def _shape_of(store: ArtifactStore, model: ArtifactRef) -> Shape:
    return shape_of(store.read_json(model.digest, "config.json"))


def _tokenizer_of(store: ArtifactStore, model: ArtifactRef) -> dict[str, Any] | None:
    if all(file.path != TOKENIZER for file in store.manifest(model.digest).files):
        return None
    return read_tokenizer(store.read(model.digest, TOKENIZER), str(model.digest))


def compared(config: RunConfig, model: str) -> dict[str, Any]:
    """Settings by which people compare runs, as params in MLflow; `model`: what all machines call the source.

    They follow from config and source alone, so that a run that goes on has those with which it began.
    """
    found: dict[str, Any] = {"model": model, "dtype": config.model.dtype, "seed": config.seed}
    for stage in STAGES:
        if (section := getattr(config, stage.section)) is not None:
            found |= stage.params(section)
    return found


def _end_dead_runs(tracker: Tracker, locks: LeaseLockManager, own: str) -> None:
    """End as KILLED what dead processes left running, and what an earlier attempt of this run did."""
    _end_nested(tracker, own)
    for run in tracker.running_of(f"tags.`{WRITER}` LIKE 'writer-%'"):
        if run.info.run_id != own and not locks.is_locked(run.data.tags[WRITER]):
            _end_nested(tracker, run.info.run_id)
            tracker.end(run.info.run_id, "KILLED")


def _end_nested(tracker: Tracker, parent: str) -> None:
    # Variants of a dead sweep that are at work elsewhere have writers of their own.
    for run in tracker.running_of(f"tags.`{PARENT}` = '{parent}' and tags.`{STAGE}` LIKE '%'"):
        tracker.end(run.info.run_id, "KILLED")


def _load(config: Any, overrides: list[str]) -> Loaded:
    """Prefect hands sections over as the mapping that was sent, so that secrets are filled in only here."""
    if isinstance(config, str):
        return load(Path(config), overrides)
    return load_data(config, Path(INLINE), overrides)


def _told_by(session: Session) -> Callable[[str], None]:
    """A key begins with its stage's name."""
    return lambda key: session.display.waiting(key.rpartition("-")[0])


def _run_tags(loaded: Loaded, digest: str) -> dict[str, str]:
    code = identity.code_identity()
    commit = {"mlflow.source.git.commit": code["commit"]} if "commit" in code else {}
    return {
        FLOW_RUN: str(flow_run.id),
        "resprout.config_digest": digest,
        "resprout.model_source": loaded.config.model.source,
        "resprout.method": resolve(loaded.config.prune).method,
        **{f"resprout.code.{key}": value for key, value in code.items()},
        **commit,
    }
