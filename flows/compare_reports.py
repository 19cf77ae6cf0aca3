"""Several runs on one page: those that references name, and the variants of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, ResproutError
from resprout.configs.result import VerdictResult
from resprout.configs.sweep import SweepResult
from resprout.flows.past_runs import shipped_run
from resprout.flows.workspace import RUN_ID, Workspace
from resprout.infra.mlflow.tracking import REPORT_RECORD
from resprout.tasks.core.mlflow_log import flat
from resprout.tasks.quantize.names import DENSE
from resprout.tasks.report.compare import Comparison, comparison_page
from resprout.tasks.report.past_run import PastRun, as_shipped
from resprout.tasks.report.verdict import VERDICT

if TYPE_CHECKING:
    from mlflow.entities import Run


def run_of(workspace: Workspace, reference: str) -> Run:
    """The MLflow run that made a model version, or that has this id; BadInput for what is neither."""
    if reference.startswith("models:/"):
        run_id = workspace.tracker.version(reference).run_id
        if not run_id:
            raise BadInput(f"{reference} names no run; give a version that `resprout run` made")
        return workspace.tracker.run(run_id)
    if RUN_ID.match(reference):
        return workspace.tracker.run(reference)
    raise BadInput(
        f"'{reference}' is no reference; give models:/name/3, models:/name@alias, or an MLflow run id"
    )


def compare_references(workspace: Workspace, references: Sequence[str]) -> str:
    """The page of the runs that the references name, in their order; BadInput for one without scores."""
    runs = []
    for reference in references:
        run = run_of(workspace, reference)
        found = shipped_run(run, _config(workspace, run), _verdict(workspace, run))
        if found is None:
            raise BadInput(
                f"{reference} has no scores of a dense and a pruned model; give a version or a run that "
                "`resprout run` made and that came to a verdict"
            )
        runs.append(found)
    models = dict.fromkeys(str(one.config.get("model.source", "")) for one in runs)
    return comparison_page(f"{len(runs)} runs compared", ", ".join(filter(None, models)), runs).text


def compare_variants(result: SweepResult, base: str) -> Comparison:
    """The page of a sweep on the config called `base`, and its charts."""
    runs, left_out = [], {}
    for variant in result.variants:
        made = variant.result.made_models()
        if DENSE not in made or len(made) < 2:
            left_out[variant.name] = variant.result.message or variant.result.status
            continue
        metrics = {name: one.metrics for name, one in made.items()}
        files = {name: one.metrics for name, one in variant.result.files.items()}
        gate = variant.result.gate
        runs.append(
            PastRun(
                name=variant.name,
                method=variant.result.method or "",
                gate="none" if gate is None or not gate.checks else "passed" if gate.passed else "failed",
                models=as_shipped(metrics, files, variant.result.ships),
                config=variant.settings,
            )
        )
    return comparison_page(
        f"Sweep {result.name}", f"{len(result.variants)} variants of {base}", runs, left_out
    )


def _verdict(workspace: Workspace, run: Run) -> VerdictResult | None:
    """The verdict of the run's report; None where that is gone, or of a release that wrote none."""
    identity = run.data.tags.get(REPORT_RECORD)
    if identity is None or not workspace.store.has_record(identity):
        return None
    try:
        found = workspace.store.read_json(workspace.store.get_record(identity).content, VERDICT)
    except ResproutError:
        return None
    return VerdictResult.model_validate(found)


def _config(workspace: Workspace, run: Run) -> dict[str, Any]:
    """The run's settings under dotted names, as its report has them; none where that is gone."""
    identity = run.data.tags.get(REPORT_RECORD)
    if identity is None or not workspace.store.has_record(identity):
        return {}
    config = workspace.store.get_record(identity).config.get("config", {})
    return {name: value for name, value in flat(config).items() if name != "name"}
