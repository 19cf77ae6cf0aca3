"""The flow: acquire, calibrate, prune, select, recover, evaluate, measure, gate, export, report, register.

Wiring only. Sources are pinned and everything that can be checked cheaply is checked before the first
expensive stage; each model is evaluated as soon as it exists; dense scores are shared by all runs on that
model, because their key is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow

from resprout.configs.errors import BadInput
from resprout.configs.load import Loaded, load
from resprout.configs.result import (
    ExportResult,
    GateResult,
    ModelResult,
    ModelResults,
    Overhead,
)
from resprout.flows import preflight
from resprout.flows.check import check
from resprout.flows.session import Session, current, using
from resprout.flows.sources import Sources
from resprout.infra import identity
from resprout.infra.environment import prepare
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.reference import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker
from resprout.tasks.acquire.stage import acquire_model, acquire_rows, acquire_task, acquire_text
from resprout.tasks.calibrate.stage import calibrate
from resprout.tasks.evaluate.stage import TASK_ROLE, evaluate
from resprout.tasks.export.stage import export
from resprout.tasks.gate.stage import gate
from resprout.tasks.job import Job
from resprout.tasks.measure.stage import measure
from resprout.tasks.prune.stage import plan, prune
from resprout.tasks.recover.stage import recover
from resprout.tasks.register.reconcile import register
from resprout.tasks.report.stage import ReportConfig, report
from resprout.tasks.run import Run
from resprout.tasks.select.pool_stage import pool
from resprout.tasks.select.stage import select
from resprout.tasks.stage import Input, Part, ref_of

C = TypeVar("C")


def compress_here(loaded: Loaded, overrides: list[str], session: Session) -> None:
    """Run the flow in this process, filling the session's result."""
    session.called_at = time.perf_counter()
    with using(session):
        compress(str(loaded.path), list(overrides))


@flow(name="compress", validate_parameters=False)
def compress(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Compress the model that the run config at path `config` names; `overrides` are key=value."""
    session = current()
    if session.called_at:
        session.server_start_seconds = time.perf_counter() - session.called_at
    loaded = load(Path(config), overrides or [])
    check(loaded)
    prepare(loaded.config.infra, loaded.home)
    began = time.perf_counter()
    tracker = Tracker(loaded.config.infra.mlflow, loaded.home)
    tracker.connect()
    store = ArtifactStore.from_config(loaded.config.infra.store, loaded.home)
    store.ensure_writable()
    sources = Sources(loaded, tracker)
    preflight.check(loaded, store, sources)
    run_id = tracker.start(loaded.config.name, _run_tags(loaded))
    session.result.mlflow_run_id = run_id
    session.result.config_digest = config_digest(loaded)
    run = Run(
        store=store,
        tracker=tracker,
        locks=LeaseLockManager(store.driver),
        results=ArtifactResults.of(store),
        display=session.display,
        home=loaded.home,
        mlflow_run_id=run_id,
        retries=loaded.config.infra.prefect.retries,
        retry_delay_seconds=loaded.config.infra.prefect.retry_delay_seconds,
    )
    run.stages = session.result.stages
    with tracker.running(run_id):
        tracker.log_text(run_id, json.dumps(loaded.config.public(), indent=1, sort_keys=True), "config.json")
        if identity.dirty_patch():
            tracker.log_text(run_id, identity.dirty_patch(), "uncommitted.patch")
        Steps(loaded, run, sources, session, overrides or []).all()
        session.result.overhead = Overhead(
            orchestration_seconds=round(time.perf_counter() - began - run.work_seconds, 3),
            imports_seconds=round(session.imports_seconds, 3),
            server_start_seconds=round(session.server_start_seconds, 3),
        )
    return session.result.model_dump(mode="json")


def config_digest(loaded: Loaded) -> str:
    """sha256 of the resolved config without infrastructure and secrets."""
    data = {key: value for key, value in loaded.config.public().items() if key != "infra"}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def place_report(folder: Path, home: Path, name: str) -> Path:
    """A copy of the report where a person looks for it: <home>/reports/<name>/report.html."""
    target = home / "reports" / name
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        shutil.copyfile(file, target / file.name)
    return target / "report.html"


def _run_tags(loaded: Loaded) -> dict[str, str]:
    code = {f"resprout.code.{key}": value for key, value in identity.code_identity().items()}
    if "commit" in identity.code_identity():
        code["mlflow.source.git.commit"] = identity.code_identity()["commit"]
    return {
        "resprout.config_digest": config_digest(loaded),
        "resprout.model_source": loaded.config.model.source,
        **code,
    }


class Steps:
    """The stages of one run in their order, each fed with references."""

    def __init__(
        self, loaded: Loaded, run: Run, sources: Sources, session: Session, overrides: list[str]
    ) -> None:
        self.config = loaded.config
        self.loaded = loaded
        self.run = run
        self.sources = sources
        self.session = session
        self.result = session.result
        self.overrides = overrides
        self.scores: dict[str, ArtifactRef] = {}
        self.speeds: dict[str, ArtifactRef] = {}

    def job(self, section: C) -> Job[C]:
        """A job of this run."""
        model = self.config.model
        return Job(
            section, self.config.seed, preflight.device(model.device), model.dtype, model.trust_remote_code
        )

    def all(self) -> None:
        """From sources to a registered model; the result is filled step by step."""
        config, run = self.config, self.run
        self.acquire()
        if config.select is not None:
            pool(run, self.job(config.select), {"rows": self.rows, "dense": self.dense})
        text = {"text": self.calibration_text} if self.calibration_text else {}
        calibration = calibrate(run, self.job(config.calibrate), {"model": self.dense, **text})
        seen = {"model": self.dense, "calibration": calibration}
        planned = plan(run, self.job(config.prune), seen)
        self.judge("dense", self.dense)
        pruned = prune(run, self.job(config.prune), {**seen, "plan": planned})
        self.judge("pruned", pruned)
        final: Input = pruned
        grown: dict[str, Input] = {}
        if config.select is not None and config.recover is not None:
            pair = {"dense": self.dense, "pruned": pruned, "rows": self.rows}
            encoder = {"embedder": self.embedder} if self.embedder else {}
            chosen = select(run, self.job(config.select), {**pair, **encoder})
            teacher = {"dense": self.dense} if config.recover.distill_weight > 0 else {}
            recovery = recover(
                run, self.job(config.recover), {"pruned": pruned, "selection": chosen, **teacher}
            )
            final = Part(recovery, "model")
            grown = {"selection": chosen, "recovery": recovery}
            self.judge("recovered", final)
        self.fill_models()
        verdict = self.hold_gate()
        exported = export(run, self.job(config.export), {"model": final})
        self.fill_exports(exported)
        reported = self.write_report(planned, exported, verdict, grown)
        self.finish(planned, exported, reported, grown)

    def acquire(self) -> None:
        """Bring the model and all data here, so that a bad row is found before anything expensive."""
        config, run, sources = self.config, self.run, self.sources
        self.dense: ArtifactRef = acquire_model(run, self.job(sources.model), label="acquire model")
        self.calibration_text = (
            acquire_text(run, self.job(sources.data(config.calibrate.text)), label="acquire calibration text")
            if config.calibrate.text
            else None
        )
        self.text = acquire_text(
            run, self.job(sources.data(config.evaluate.perplexity.text)), label="acquire evaluation text"
        )
        zero_shot = config.evaluate.zero_shot
        self.tasks: dict[str, Input] = {
            f"{TASK_ROLE}{one.task}": acquire_task(
                run, self.job(sources.task(one)), label=f"acquire task {Path(one.task).stem}"
            )
            for one in (zero_shot.tasks if zero_shot else ())
        }
        self.embedder: ArtifactRef | None = None
        if config.select is not None:
            self.rows = acquire_rows(run, self.job(sources.data(config.select.pool)), label="acquire pool")
            if sources.embedder is not None:
                self.embedder = acquire_model(run, self.job(sources.embedder), label="acquire embedder")

    def judge(self, name: str, model: Input) -> None:
        """Scores and measurements of one model."""
        given = {"model": model, "text": self.text, **self.tasks}
        if name != "dense":
            given["dense"] = self.dense
        self.scores[name] = evaluate(self.run, self.job(self.config.evaluate), given, f"evaluate {name}")
        if self.config.measure is not None:
            self.speeds[name] = measure(
                self.run, self.job(self.config.measure), {"model": model}, f"measure {name}"
            )

    def fill_models(self) -> None:
        """Sizes and metrics of the models into the result, and into the parent run as <model>.<metric>."""
        found = {}
        for name, scores in self.scores.items():
            metrics = self.read(scores, "metrics.json")
            if name in self.speeds:
                metrics.update(self.read(self.speeds[name], "metrics.json"))
            found[name] = ModelResult(
                params=int(metrics["params"]),
                non_embedding_params=int(metrics["non_embedding_params"]),
                bytes=int(metrics["bytes"]),
                metrics=metrics,
            )
        source = self.read(self.dense, "source.json")
        self.session.source_bytes = source["source_bytes"]
        self.session.source_format = source["source_format"]
        self.result.models = ModelResults(
            dense=found["dense"], pruned=found["pruned"], recovered=found.get("recovered")
        )
        flat = {f"{name}.{key}": value for name, one in found.items() for key, value in one.metrics.items()}
        self.run.tracker.log(self.run.mlflow_run_id, metrics=flat)

    def hold_gate(self) -> ArtifactRef | None:
        """The gate's verdict into the result; passed without checks where the config has none."""
        if self.config.gate is None:
            self.result.gate = GateResult(passed=True, checks=[])
            return None
        final = self.scores.get("recovered", self.scores["pruned"])
        held = gate(self.run, self.job(self.config.gate), {"dense": self.scores["dense"], "final": final})
        self.result.gate = GateResult.model_validate(self.read(held, "gate.json"))
        return held

    def fill_exports(self, exported: ArtifactRef) -> None:
        """The exported formats into the result."""
        for one in self.read(exported, "exports.json"):
            uri = f"{exported.uri.rstrip('/')}/{one['path']}"
            self.result.exports.append(
                ExportResult(
                    format=one["format"],
                    uri=uri,
                    bytes=one["bytes"],
                    verified=one["verified"],
                    max_abs_logit_diff=one["max_abs_logit_diff"],
                )
            )

    def write_report(
        self,
        planned: ArtifactRef,
        exported: ArtifactRef,
        verdict: ArtifactRef | None,
        grown: dict[str, Input],
    ) -> ArtifactRef:
        """The report as an artifact, in MLflow, and where a person finds it."""
        inputs: dict[str, Input] = {
            "source": self.dense,
            "plan": planned,
            "export": exported,
            **self.scores,
            **{f"{name}_speed": speed for name, speed in self.speeds.items()},
            **({"gate": verdict} if verdict else {}),
            **grown,
        }
        public = {key: value for key, value in self.config.public().items() if key != "infra"}
        settings = ReportConfig(
            name=self.config.name,
            config=public,
            command=" ".join(["resprout run", self.loaded.path.name, *self.overrides]),
            digests={stage.name: stage.artifact.digest for stage in self.result.stages},
        )
        reported = report(self.run, self.job(settings), inputs)
        with self.run.store.open(reported.digest) as folder:
            self.run.tracker.log_folder(self.run.mlflow_run_id, folder, "report")
            self.result.report = str(place_report(folder, self.loaded.home, self.config.name))
        self.run.tracker.log(self.run.mlflow_run_id, tags={"resprout.report": reported.digest})
        return reported

    def finish(
        self, planned: ArtifactRef, exported: ArtifactRef, reported: ArtifactRef, grown: dict[str, Input]
    ) -> None:
        """Register behind a passed gate, and say how the run ended."""
        result, run, config = self.result, self.run, self.config
        if result.gate is None:
            raise BadInput("the gate was not held; this is a defect of resprout")
        run.tracker.log(
            run.mlflow_run_id, tags={"resprout.gate": "passed" if result.gate.passed else "failed"}
        )
        if not result.gate.passed:
            outside = [
                f"{one.name} {one.value:.4f} (bound {one.bound})"
                for one in result.gate.checks
                if not one.passed
            ]
            result.status, result.exit_code = "gate_not_passed", 3
            result.message = f"the gate is not passed: {', '.join(outside)}; nothing was registered"
            return
        if config.registration is not None and result.exports:
            tags = {
                "resprout.source": config.model.source,
                "resprout.source_digest": self.dense.digest,
                "resprout.config_digest": result.config_digest or "",
                "resprout.plan": planned.digest,
                "resprout.report": reported.digest,
                "resprout.commit": identity.code_identity().get("commit", ""),
                "resprout.version": identity.code_identity()["resprout"],
                "resprout.run": run.mlflow_run_id,
                **{f"resprout.{role}": ref_of(given).digest for role, given in grown.items()},
            }
            summary = run.store.read(reported.digest, "summary.md").decode()
            folder = result.exports[0].uri.rpartition("/")[2]
            result.registered = register(run, config.registration, exported, folder, tags, summary)
            run.tracker.log(
                run.mlflow_run_id,
                tags={"resprout.registered": f"models:/{result.registered.name}/{result.registered.version}"},
            )
        result.status, result.exit_code, result.message = "done", 0, ""

    def read(self, ref: ArtifactRef, path: str) -> Any:
        """A JSON file of an artifact."""
        return json.loads(self.run.store.read(ref.digest, path))
