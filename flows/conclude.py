"""What follows the stages: the verdict, the report, the registration, the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from resprout.configs.load import Loaded
from resprout.configs.result import ExportResult, GateResult, ModelResult, ModelResults
from resprout.configs.schema import RegisterConfig
from resprout.flows.again import standalone
from resprout.flows.announce import announce
from resprout.flows.describe import PLAN, describe_model, describe_run, describe_version
from resprout.flows.describe import Place as Described
from resprout.flows.session import Session
from resprout.flows.speeds import speeds_to_dense
from resprout.flows.steps import Made
from resprout.infra import identity
from resprout.infra.lineage import tree
from resprout.infra.notes import NOTE
from resprout.infra.proof.provenance import state_provenance
from resprout.infra.proof.registering import Registrar
from resprout.infra.proof.seal import write_seal
from resprout.infra.proof.timestamp import Authority
from resprout.infra.store import exports
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.job import Job
from resprout.tasks.measure.ratio import metrics_of
from resprout.tasks.register.reconcile import own_uri, register
from resprout.tasks.report.stage import ReportConfig, averaged, config_text, report
from resprout.tasks.run import Run
from resprout.tasks.stage import Input

SELECTED = ("selected_rows", "pool_rows")
"""Metrics of the selection that the parent run shows as well."""
PROVENANCE = "provenance.intoto.json"
"""File of the run's artifacts in MLflow."""


class Conclusion:
    """The end of one run; `session.result` is filled step by step."""

    def __init__(self, loaded: Loaded, run: Run, made: Made, session: Session, command: str) -> None:
        self.loaded = loaded
        self.run = run
        self.made = made
        self.session = session
        self.result = session.result
        self.command = command

    def all(self) -> None:
        """Models, gate, exports, report, registration, and what MLflow's page says of them."""
        self.conclude()
        self.describe()

    def conclude(self) -> None:
        """Models, gate, exports, report, registration."""
        self.fill_models()
        verdict = self.fill_gate()
        self.fill_exports()
        reported = self.write_report()
        self.reported = reported
        summary = self.run.store.read(reported.digest, "summary.md").decode()
        announce(self.loaded.config.name, self.result, summary, self.run.tracker)
        self.state_provenance()
        self.verdict = "none" if self.made.gate is None else "passed" if verdict.passed else "failed"
        self.run.tracker.log(self.run.mlflow_run_id, tags={"resprout.gate": self.verdict})
        if not verdict.passed:
            outside = [one for one in verdict.checks if not one.passed]
            values = ", ".join(f"{one.name} {one.value:.4f} (bound {one.bound:g})" for one in outside)
            self.result.status, self.result.exit_code = "gate_not_passed", 3
            said = [f"the gate is not passed: {values}; nothing was registered", *self.session.remarks]
            self.result.message = "; ".join(said)
            return
        wanted = self.loaded.config.registration
        if wanted is not None and self.result.exports:
            self.register(wanted, reported, summary)
        self.result.status, self.result.exit_code = "done", 0
        self.result.message = "; ".join(self.session.remarks)

    def again(self, brought: dict[str, str]) -> None:
        """Models, gate, exports and report of a run that was made again; nothing is told or registered.

        `brought` are digests of what was not acquired anew, by the label under which it first was.
        """
        self.fill_models()
        self.fill_gate()
        self.fill_exports()
        reported, _ = self.make_report(brought)
        with self.run.store.open(reported.digest) as folder:
            self.result.report = str(shutil.copytree(folder, self.loaded.home / "report") / "report.html")

    def read(self, ref: ArtifactRef, path: str) -> Any:
        """A JSON file of an artifact."""
        return json.loads(self.run.store.read(ref.digest, path))

    def fill_models(self) -> None:
        """Sizes and metrics of the models into the result, and into the parent run as <model>.<metric>."""
        found, speeds = {}, self.made.speeds
        measured = self.read(speeds, "metrics.json") if speeds is not None else {}
        for name, scores in self.made.scores.items():
            metrics = self.read(scores, "metrics.json")
            own = metrics_of(name, measured)
            metrics.update(own)
            if name == "sparsified" and self.made.sparsified is not None:
                metrics.update(self.read(self.made.sparsified, "metrics.json"))
            found[name] = ModelResult(
                params=int(metrics["params"]),
                non_embedding_params=int(metrics["non_embedding_params"]),
                bytes=int(metrics["bytes"]),
                metrics=metrics,
                speeds=speeds_to_dense(own),
            )
        self.result.models = ModelResults(
            dense=found["dense"],
            pruned=found["pruned"],
            recovered=found.get("recovered"),
            sparsified=found.get("sparsified"),
        )
        plan = self.read(self.made.plan, PLAN)
        self.result.method, self.result.warnings = plan.get("method"), plan.get("warnings", [])
        self.session.averaged = averaged(self.read(self.made.scores["dense"], "details.json"))
        source = self.read(self.made.dense, "source.json")
        self.session.source_bytes = source["source_bytes"]
        self.session.source_format = source["source_format"]
        flat = {f"{name}.{key}": value for name, one in found.items() for key, value in one.metrics.items()}
        if self.made.selection is not None:
            selected = self.read(self.made.selection, "metrics.json")
            flat |= {name: selected[name] for name in SELECTED}
        self.run.tracker.log(self.run.mlflow_run_id, metrics=flat)

    def fill_gate(self) -> GateResult:
        """The gate's verdict into the result; passed without checks where the config has none."""
        held = self.made.gate
        verdict = (
            GateResult.model_validate(self.read(held, "gate.json"))
            if held
            else GateResult(passed=True, checks=[])
        )
        self.result.gate = verdict
        return verdict

    def fill_exports(self) -> None:
        """The exported formats into the result, and their weights among those that are known again."""
        exported = self.made.export
        exports.note(self.run.store, exported.digest)
        self.result.exports = [
            ExportResult(
                format=one["format"],
                uri=own_uri(self.run.store, exported.digest, one["path"]),
                bytes=one["bytes"],
                verified=one["verified"],
                max_abs_logit_diff=one["max_abs_logit_diff"],
            )
            for one in self.read(exported, "exports.json")
        ]

    def write_report(self) -> ArtifactRef:
        """The report as an artifact, in MLflow, and where a person finds it."""
        run = self.run
        reported, settings = self.make_report({})
        with run.store.open(reported.digest) as folder:
            run.tracker.log_folder(run.mlflow_run_id, folder, "report")
            self.result.report = str(place_report(folder, self.loaded, settings))
        run.tracker.log(
            run.mlflow_run_id,
            tags={"resprout.report": reported.digest, "resprout.report_record": reported.record},
        )
        return reported

    def make_report(self, brought: dict[str, str]) -> tuple[ArtifactRef, ReportConfig]:
        """The report as an artifact, and what was given to it."""
        made, config = self.made, self.loaded.config
        given = {
            "source": made.dense,
            "plan": made.plan,
            "export": made.export,
            "gate": made.gate,
            "selection": made.selection,
            "recovery": made.recovery,
            "sparsity": made.sparsified,
            **made.scores,
            "speeds": made.speeds,
            **{f"recovery_{number}": part for number, part in enumerate(made.trainings, 1)},
        }
        inputs: dict[str, Input] = {role: ref for role, ref in given.items() if ref is not None}
        settings = ReportConfig(
            name=config.name,
            config={key: value for key, value in config.public().items() if key != "infra"},
            command=self.command,
            digests={**brought, **{stage.name: stage.artifact.digest for stage in self.result.stages}},
        )
        return report(self.run, Job(settings, config.seed), inputs), settings

    def state_provenance(self) -> None:
        """The signed statement of how the export was built, in the store and in MLflow."""
        run, made, report = self.run, self.made.export.record, self.reported.record
        stated = run.keep(lambda: state_provenance(run.store, made, report))
        run.tracker.log_text(run.mlflow_run_id, stated.decode(), PROVENANCE)

    def register(self, wanted: RegisterConfig, reported: ArtifactRef, summary: str) -> None:
        """The model version with its lineage in tags and the report's `summary` as description."""
        made, run, config = self.made, self.run, self.loaded.config
        code = identity.code_identity()
        tags = {
            "resprout.source": config.model.source,
            "resprout.source_digest": made.dense.digest,
            "resprout.config_digest": self.result.config_digest or "",
            "resprout.plan": made.plan.digest,
            "resprout.method": self.result.method or "unknown",
            "resprout.report": reported.digest,
            "resprout.report_record": reported.record,
            "resprout.commit": code.get("commit", "none"),
            "resprout.version": code["resprout"],
            "resprout.run": run.mlflow_run_id,
        }
        later = {"selection": made.selection, "recovery": made.recovery, "sparsity": made.sparsified}
        for role, ref in later.items():
            if ref is not None:
                tags[f"resprout.{role}"] = ref.digest
        folder = self.result.exports[0].uri.rpartition("/")[2]
        run.store.confirm()
        # Of two runs at once the second must find the first's version. The run's end frees the lock.
        run.locks.acquire_lock(f"register {wanted.name}", run.mlflow_run_id)
        said = describe_version(self.here, config.name, summary)
        self.registrar = Registrar(run.store, run.tracker, wanted.name, run.mlflow_run_id)
        self.result.registered = register(
            run, wanted, made.export, folder, tags, said, self.registrar, describe_model(wanted.name)
        )
        version = f"models:/{self.result.registered.name}/{self.result.registered.version}"
        run.tracker.log(run.mlflow_run_id, tags={"resprout.registered": version})

    @property
    def here(self) -> Described:
        return Described(self.run.tracker.experiment_id, self.run.mlflow_run_id)

    def describe(self) -> None:
        """Plan and description of the run, for an auditor who has MLflow's page only."""
        run, result = self.run, self.result
        plan = run.store.read(self.made.plan.digest, PLAN).decode()
        run.tracker.log_text(run.mlflow_run_id, plan, PLAN)
        said = describe_run(
            self.here,
            tree(run.store, self.reported.record),
            identity.code_identity(),
            result.gate or GateResult(passed=True, checks=[]),
            result.registered,
            result.stages,
            run.nested,
        )
        run.tracker.log(run.mlflow_run_id, tags={NOTE: said})

    def seal(self) -> None:
        """State and sign what the run left behind, after it ended, and enter its version into the ledger."""
        run, result, name = self.run, self.result, self.result.registered
        version = f"models:/{name.name}/{name.version}" if name else None
        sealed = run.keep(
            lambda: write_seal(
                run.store,
                run.tracker,
                run.mlflow_run_id,
                Authority.from_config(self.loaded.config.infra.proof),
                name=self.loaded.config.name,
                config_digest=result.config_digest,
                verdict=self.verdict,
                report=self.reported.record,
                export=self.made.export.record,
                registered=version,
            )
        )
        result.sealed, result.signed_by = True, run.store.signer.own_id
        wanted = self.loaded.config.registration
        if name is not None and wanted is not None:
            self.registrar.enter(name.version, sealed, wanted.tags, wanted.alias)


def place_report(folder: Path, loaded: Loaded, settings: ReportConfig) -> Path:
    """A copy of the report where a person looks for it: <home>/reports/<name>/report.html.

    Its config.yaml can be run from there: paths that began at the config's folder are absolute, which they
    are not in the artifact, whose bytes depend on no folder.
    """
    target = loaded.home / "reports" / settings.name
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        shutil.copyfile(file, target / file.name)
    text = config_text(settings.command, standalone(loaded, settings.config))
    (target / "config.yaml").write_text(text, encoding="utf-8")
    return target / "report.html"
