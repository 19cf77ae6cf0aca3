"""Finish a run: gate verdict, report, registration, result, and its pages in MLflow and Prefect."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from resprout.configs.load import Loaded
from resprout.configs.result import (
    ExportResult,
    GateResult,
    LossResult,
    ModelResult,
    RunResult,
    SpeedResult,
    VerdictResult,
)
from resprout.configs.schema import PushConfig, RegisterConfig
from resprout.flows.formats import formats_in
from resprout.flows.mlflow_pages import PLAN, REPORT, RunPage, describe_model, describe_run, describe_version
from resprout.flows.model_page import model_page
from resprout.flows.past_runs import earlier_runs
from resprout.flows.push import push_formats
from resprout.flows.rerun_command import standalone
from resprout.flows.rivals import Rivals
from resprout.flows.session import Session
from resprout.flows.stages import SCORES, STAGES, Artifacts, models
from resprout.infra import identity
from resprout.infra.lineage import tree
from resprout.infra.markdown import NOTE
from resprout.infra.mlflow.logged_model import ModelPage
from resprout.infra.mlflow.tracking import MAX_TAG_CHARS, SHIPS
from resprout.infra.mlflow.tracking import VERDICT as VERDICT_TAG
from resprout.infra.provenance.ledger import Registrar
from resprout.infra.provenance.seal import write_seal
from resprout.infra.provenance.statement import write_provenance
from resprout.infra.provenance.timestamp import Authority
from resprout.infra.store import exports
from resprout.infra.store.named_models import name_model
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.core.job import Job
from resprout.tasks.core.run import Run
from resprout.tasks.evaluate.paired import FILE as SAMPLES
from resprout.tasks.evaluate.paired import compared
from resprout.tasks.evaluate.task_files import trusted_code
from resprout.tasks.export.format import folder_name
from resprout.tasks.measure.ratio import metrics_of, ratio_in
from resprout.tasks.quantize.names import DENSE, file_of, judged
from resprout.tasks.register.reconcile import own_uri, register
from resprout.tasks.report.files import against_fewer_bits, bias
from resprout.tasks.report.lost import lost_of
from resprout.tasks.report.outlook import Outlook, Recovery, rung_sentences, rungs_of
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.selection import answers_sentence, cluster_sentences, selection_sentence
from resprout.tasks.report.shipped import shipped
from resprout.tasks.report.stage import ReportConfig, averaged, config_text, in_order, measured_how, report
from resprout.tasks.report.table import summary_metrics
from resprout.tasks.report.verdict import VERDICT
from resprout.tasks.select.comparison import FILE as COMPARISON

logger = logging.getLogger(__name__)

PROVENANCE = "provenance.intoto.json"
"""File of the run's artifacts in MLflow."""
SHORT = 12
"""Digits of a digest that tell exports apart."""


class Conclusion:
    """The end of one run; `session.result` is filled step by step."""

    def __init__(
        self, loaded: Loaded, run: Run, artifacts: Artifacts, session: Session, command: str
    ) -> None:
        self.loaded = loaded
        self.run = run
        self.artifacts = artifacts
        self.session = session
        self.result = session.result
        self.command = command

    def all(self) -> None:
        """Models, gate, exports, report, registration, and what MLflow's page says of them."""
        self.conclude()
        self.name_exports()
        self.describe()

    def stop_if_dominated(self, rivals: Rivals) -> bool:
        """End the run where another variant's pruned model is better, with the models that there are."""
        self.fill_models()
        pruned = (self.result.models or {}).get("pruned")
        better = rivals.better(pruned.metrics) if pruned is not None else None
        if better is None:
            return False
        self.result.status, self.result.exit_code = "stopped", 0
        self.result.message = f"the pruned model of {better} is no worse by any objective and better by one"
        self.run.tracker.log(self.run.mlflow_run_id, tags={"resprout.stopped": self.result.message})
        return True

    def conclude(self) -> None:
        """Models, gate, exports, report, registration."""
        self.fill_models()
        verdict = self.fill_gate()
        self.fill_exports()
        reported = self.write_report()
        self.reported = reported
        summary = self.run.store.read(reported.digest, "summary.md").decode()
        page = self.run.tracker.page(self.run.mlflow_run_id)
        show_in_prefect(self.loaded.config.name, self.result, summary, page)
        self.write_provenance()
        self.verdict = (
            "none" if self.artifacts.named("gate") is None else "passed" if verdict.passed else "failed"
        )
        self.run.tracker.log(self.run.mlflow_run_id, tags={"resprout.gate": self.verdict})
        if not verdict.passed:
            outside = [one for one in verdict.checks if not one.passed]
            values = ", ".join(one.text for one in outside)
            self.result.status, self.result.exit_code = "gate_not_passed", 3
            reasons = [f"the gate is not passed: {values}; nothing was registered", *self.session.remarks]
            self.result.message = "; ".join(reasons)
            return
        wanted = self.loaded.config.registration
        if wanted is not None and self.result.exports:
            self.register(wanted, reported, summary)
        if self.loaded.config.push is not None:
            self.push(self.loaded.config.push)
        self.result.status, self.result.exit_code = "done", 0
        self.result.message = "; ".join(self.session.remarks)

    def again(self, brought: dict[str, str]) -> None:
        """Models, gate, exports and report of a run that was made again; nothing is shown or registered.

        `brought` are digests of what was not acquired again, by the label under which it first was.
        """
        self.fill_models()
        self.fill_gate()
        self.fill_exports()
        reported, _ = self.make_report(brought)
        with self.run.store.open(reported.digest) as folder:
            self.result.report = str(shutil.copytree(folder, self.loaded.home / "report") / "report.html")

    def read(self, ref: ArtifactRef, path: str) -> Any:
        """A JSON file of an artifact."""
        return self.run.store.read_json(ref.digest, path)

    def fewer_bits(self, source_format: str) -> list[str]:
        """Whether the dense model in fewer bits is better than each file of the pruned model."""
        files = {name: one.metrics for name, one in self.result.files.items()}
        if not files:
            return []
        scores, speeds = self.artifacts.group(SCORES), self.artifacts.named("speeds")
        windows = {name: self.read(scores[name], SAMPLES)["windows"] for name in files}
        timed = self.read(speeds, "details.json")["models"] if speeds is not None else {}
        found = [one.sentence for one in against_fewer_bits(files, windows, timed)]
        return [one for one in (*found, bias(source_format, files)) if one]

    def fill_models(self) -> None:
        """Sizes and metrics of the models into the result, and into the parent run as <model>.<metric>."""
        speeds = self.artifacts.named("speeds")
        measured = self.read(speeds, "metrics.json") if speeds is not None else {}
        found, group = {}, self.artifacts.group(SCORES)
        lost: dict[str, LossResult] = {}
        for name, scores in group.items():
            metrics = self.read(scores, "metrics.json")
            if name != DENSE:
                with (
                    self.run.store.open(group[DENSE].digest) as dense,
                    self.run.store.open(scores.digest) as own_scores,
                ):
                    metrics |= compared(dense, own_scores)
                    lost = lost_of(dense, own_scores)
            own = metrics_of(name, measured)
            metrics.update(own)
            if (measured_by := self.own_metrics().get(name)) is not None:
                metrics.update(self.read(self.artifacts.of(measured_by), "metrics.json"))
            metrics.update(self.written(name))
            found[name] = ModelResult(
                params=int(metrics["params"]),
                non_embedding_params=int(metrics["non_embedding_params"]),
                bytes=int(metrics["bytes"]),
                metrics=metrics,
                speeds=speeds_to_dense(own),
                losses=lost,
            )
        self.result.models = {name: found.get(name) for name in models()}
        self.result.files = {name: one for name, one in found.items() if name not in self.result.models}
        plan = self.read(self.artifacts.of("plan"), PLAN)
        self.result.method, self.result.warnings = plan.get("method"), plan.get("warnings", [])
        self.session.averaged = averaged(self.read(self.artifacts.group(SCORES)["dense"], "details.json"))
        self.session.recovery = self.recovery()
        if (drafted := self.artifacts.named("draft")) is not None:
            self.result.draft = self.read(drafted, "metrics.json")
        if (chosen := self.artifacts.named("training_rows")) is not None:
            summary = self.read(chosen, "summary.json")
            self.result.selection = f"{selection_sentence(summary)} {answers_sentence(summary)}".rstrip()
            self.result.warnings = [*self.result.warnings, *summary["warnings"]]
            for line in (self.result.selection, *cluster_sentences(summary)):
                logger.info("%s", line)
        if (held := self.artifacts.named("selections")) is not None:
            self.result.selections = self.read(held, COMPARISON)["sentences"]
        if speeds is not None:
            self.session.measured = measured_how(self.read(speeds, "details.json"))
        source = self.read(self.artifacts.of("source"), "source.json")
        self.session.source_bytes = source["source_bytes"]
        self.session.source_format = source["source_format"]
        # A search can end a run before anything is exported.
        exported = self.artifacts.named("export")
        rows = self.read(exported, "exports.json") if exported is not None else []
        self.session.ships = self.result.ships = shipped(self.loaded.config.public(), rows, source)
        self.result.against_fewer_bits = self.fewer_bits(self.session.source_format)
        flat = {f"{name}.{key}": value for name, one in found.items() for key, value in one.metrics.items()}
        for stage in STAGES:
            if stage.metrics and (made := self.artifacts.named(stage.gives)) is not None:
                metrics = self.read(made, "metrics.json")
                flat |= {name: metrics[name] for name in stage.metrics if name in metrics}
        # MLflow's page lists metrics as they came in, so those that matter come before all others.
        self.run.tracker.log(self.run.mlflow_run_id, metrics=self.headlines())
        self.run.tracker.log(self.run.mlflow_run_id, metrics=flat)

    def headlines(self) -> dict[str, float]:
        """What a run comes to, in ten metrics of the model or file that its verdict is about."""
        made = {**self.result.made_models(), **self.result.files}
        about = judged(self.loaded.config.public())
        final = made[about if about in made else list(self.result.made_models())[-1]]
        return summary_metrics(made[DENSE].metrics, final.metrics, self.session.ships)

    def recovery(self) -> list[str]:
        """Sentences on rungs of a ladder that were skipped, and on the loss of longer training."""
        store, made, recover = self.run.store, self.artifacts.reported(), self.loaded.config.recover
        found = []

        def text(digest: str, path: str) -> str:
            return store.read(digest, path).decode()

        for name in in_order(made):
            digest = made[name].digest
            files = [file.path for file in store.manifest(digest).files]
            found.append(Recovery.of(files, partial(text, digest)))
        outlook = Outlook.of(found, best=recover is not None and recover.patience is not None)
        return [one for one in (*rung_sentences(rungs_of(found)), outlook.sentence) if one]

    def written(self, name: str) -> dict[str, float]:
        """Metrics of how a file of few bits was written; none of the source file."""
        file = self.artifacts.named(file_of(name))
        return self.read(file, "metrics.json") if file is not None else {}

    def own_metrics(self) -> dict[str, str | None]:
        """The models, each with the artifact whose metrics are its own beside its scores."""
        left = ((step.gives, step.leaves) for step in self.artifacts.steps)
        return {model.name: name if model.metrics else None for name, model in left if model is not None}

    def fill_gate(self) -> GateResult:
        """The gate's verdict into the result; passed without checks where the config has none."""
        held = self.artifacts.named("gate")
        verdict = (
            GateResult.model_validate(self.read(held, "gate.json"))
            if held
            else GateResult(passed=True, checks=[])
        )
        self.result.gate = verdict
        return verdict

    def fill_exports(self) -> None:
        """The exported formats into the result, and their weights among those that are known again."""
        exported = self.artifacts.of("export")
        rows = self.read(exported, "exports.json")
        exports.note(self.run.store, exported.digest)
        self.result.exports = [
            ExportResult(
                format=one["format"],
                uri=own_uri(self.run.store, exported.digest, one["path"]),
                bytes=one["bytes"],
                verified=one["verified"],
                max_abs_logit_diff=one.get("max_abs_logit_diff"),
                mean_kl_nats=one.get("mean_kl_nats"),
            )
            for one in rows
        ]

    def name_exports(self) -> None:
        """Links to the exported folders under the names that people know, where the store is a folder.

        The first format is the registered version's; others carry their name besides. What is not registered
        is called by the run's name and the start of the export's digest.
        """
        digest, registered = self.artifacts.of("export").digest, self.result.registered
        if (content := self.run.store.folder(digest)) is None:
            return
        name, version = self.loaded.config.name, digest[:SHORT]
        if registered is not None:
            name, version = registered.name, registered.version
        for place, one in enumerate(self.result.exports):
            called = f"{version}-{folder_name(one.format)}" if place else version
            folder = content / one.uri.rpartition("/")[2]
            one.path = str(name_model(self.loaded.home, name, called, folder))

    def write_report(self) -> ArtifactRef:
        """The report as an artifact, in MLflow, and where a person finds it."""
        run = self.run
        reported, settings = self.make_report({})
        self.result.verdict = VerdictResult.model_validate(self.read(reported, VERDICT))
        ships = {SHIPS: self.result.ships.format} if self.result.ships is not None else {}
        with run.store.open(reported.digest) as folder:
            run.tracker.log_folder(run.mlflow_run_id, folder, "report")
            self.result.report = str(place_report(folder, self.loaded, settings))
        run.tracker.log(
            run.mlflow_run_id,
            tags={
                "resprout.report": reported.digest,
                "resprout.report_record": reported.record,
                VERDICT_TAG: self.result.verdict.sentence[:MAX_TAG_CHARS],
                **ships,
            },
        )
        return reported

    def make_report(self, brought: dict[str, str]) -> tuple[ArtifactRef, ReportConfig]:
        """The report as an artifact, and what was given to it."""
        config = self.loaded.config
        settings = ReportConfig(
            name=config.name,
            config={key: value for key, value in config.public().items() if key != "infra"},
            command=self.command,
            digests={**brought, **{stage.name: stage.artifact.digest for stage in self.result.stages}},
            models=self.own_metrics(),
            files={name: self.written(name) for name in self.result.files},
            made=self.run.store.get_record(self.artifacts.of("export").record).started[:10],
            credits=[
                {"role": one.role, "name": one.name, "licence": one.shown_licence}
                for one in self.artifacts.steps.credits
            ]
            + [
                {"role": f"task {name}", "name": code.sentence, "licence": ""}
                for name, code in trusted_code(config.evaluate, self.loaded.base).items()
            ],
            graph=self.artifacts.steps.graph(),
            earlier=self.earlier_runs(),
        )
        return report(self.run, Job(settings, config.seed), self.artifacts.reported()), settings

    def earlier_runs(self) -> list[PastRun]:
        """Runs on this model before this one, by the params of this one."""
        run, made = self.run, self.result.made_models()
        model = run.tracker.run(run.mlflow_run_id).data.params.get("model")
        if model is None:
            return []
        last = list(made.values())[-1].metrics
        return earlier_runs(run.tracker, run.mlflow_run_id, model, made[DENSE].metrics, last)

    def write_provenance(self) -> None:
        """The signed statement of how the export was built, in the store and in MLflow."""
        run, made, report = self.run, self.artifacts.of("export").record, self.reported.record
        stated = run.keep(lambda: write_provenance(run.store, made, report))
        run.tracker.log_text(run.mlflow_run_id, stated.decode(), PROVENANCE)

    def register(self, wanted: RegisterConfig, reported: ArtifactRef, summary: str) -> None:
        """The model version with its lineage in tags and the report's `summary` as description."""
        artifacts, run, config = self.artifacts, self.run, self.loaded.config
        code = identity.code_identity()
        tags = {
            "resprout.source": config.model.source,
            "resprout.source_digest": artifacts.of("source").digest,
            "resprout.config_digest": self.result.config_digest or "",
            "resprout.method": self.result.method or "unknown",
            "resprout.report": reported.digest,
            "resprout.report_record": reported.record,
            "resprout.commit": code.get("commit", "none"),
            "resprout.version": code["resprout"],
            "resprout.run": run.mlflow_run_id,
        }
        for stage in STAGES:
            if stage.tagged and (made := artifacts.named(stage.gives)) is not None:
                tags[f"resprout.{stage.gives}"] = made.digest
        folder = self.result.exports[0].uri.rpartition("/")[2]
        run.store.confirm()
        # Of two runs at once the second must find the first's version. The run's end frees the lock.
        run.locks.acquire_lock(f"register {wanted.name}", run.mlflow_run_id)
        description = describe_version(self.here, config.name, summary)
        self.registrar = Registrar(run.store, run.tracker, wanted.name, run.mlflow_run_id)
        self.result.registered = register(
            run,
            wanted,
            artifacts.of("export"),
            folder,
            tags,
            description,
            self.registrar,
            describe_model(wanted.name),
            self.model_page(folder),
        )
        version = f"models:/{self.result.registered.name}/{self.result.registered.version}"
        run.tracker.log(run.mlflow_run_id, tags={"resprout.registered": version})

    def push(self, wanted: PushConfig) -> None:
        """The exports on the model hub; a gate that is not passed never leads here."""
        run, made = self.run, formats_in(self.run.store, self.artifacts.of("export"))
        formats = [made[name] for name in wanted.formats or made]
        name = f"{self.loaded.config.name}, run {run.mlflow_run_id}"
        self.result.pushed = run.retried(
            "push", lambda: push_formats(run.store, formats, wanted.to, name, wanted.private)
        )
        run.tracker.log(run.mlflow_run_id, tags={"resprout.pushed": self.result.pushed.to})

    def model_page(self, folder: str) -> ModelPage:
        """The page of the exported model in this folder."""
        run, export = self.run, self.artifacts.of("export").digest
        params = run.tracker.run(run.mlflow_run_id).data.params
        last = list(self.result.made_models().values())[-1]
        return model_page(run.store, self.artifacts, export, folder, params, last.metrics)

    @property
    def here(self) -> RunPage:
        return RunPage(self.run.tracker.experiment_id, self.run.mlflow_run_id)

    def describe(self) -> None:
        """Plan and description of the run, for an auditor who has MLflow's page only."""
        run, result = self.run, self.result
        plan = run.store.read(self.artifacts.of("plan").digest, PLAN).decode()
        run.tracker.log_text(run.mlflow_run_id, plan, PLAN)
        note = describe_run(
            self.here,
            tree(run.store, self.reported.record),
            identity.code_identity(),
            result.gate or GateResult(passed=True, checks=[]),
            result.registered,
            result.stages,
            run.nested,
        )
        run.tracker.log(run.mlflow_run_id, tags={NOTE: note})

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
                export=self.artifacts.of("export").record,
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


def speeds_to_dense(metrics: Mapping[str, float]) -> dict[str, SpeedResult]:
    """By the name of each speed among `metrics` its ratio to the dense model's; nothing of the dense one."""
    found = {name: ratio for name in metrics if (ratio := ratio_in(metrics, name)) is not None}
    return {
        name: SpeedResult(ratio=one.median, low=one.low, high=one.high, different=one.different)
        for name, one in found.items()
    }


def show_in_prefect(name: str, result: RunResult, summary: str, page: str | None) -> None:
    """Make the Prefect artifacts of a run called `name`: summary, table of models, links to MLflow's `page`.

    A server that does not take them ends no run.
    """
    key = "".join(char if char.isalnum() else "-" for char in name.lower()).strip("-") or "run"
    table = [
        {"model": model, "params": one.params, "bytes": one.bytes, **dict(sorted(one.metrics.items()))}
        for model, one in result.made_models().items()
    ]
    _try(create_markdown_artifact, markdown=summary, key=f"{key}-summary", description=f"Report of {name}")
    _try(create_table_artifact, table=table, key=f"{key}-result", description=f"Models of {name}")
    if page is not None:
        _try(create_link_artifact, link=page, link_text=f"{name} in MLflow", key=f"{key}-mlflow")
        report = f"{page}/artifacts/{REPORT}"
        _try(create_link_artifact, link=report, link_text=f"Report of {name}", key=f"{key}-report")


def _try(make: Callable[..., Any], **given: Any) -> None:
    try:
        make(**given)
    except Exception as error:
        logger.warning("Prefect did not take the artifact %s: %s", given["key"], " ".join(str(error).split()))
