"""Descriptions of runs, versions and models on MLflow's pages, in Markdown, with links between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from resprout.configs.result import GateResult, RegisteredResult, StageResult
from resprout.infra.lineage import Node
from resprout.infra.markdown import code, link, model_page, plain, run_page
from resprout.infra.store.record import Record
from resprout.tasks.acquire.stage import ACQUIRING
from resprout.tasks.core.run import Nested

PLAN, CONFIG, PATCH, REPORT = "plan.json", "config.json", "uncommitted.patch", "report/report.html"
"""Files of a run that its description leads to."""
MAX_CHARS = 5000
"""Longest description that MLflow keeps."""
SHORT = 12


@dataclass(frozen=True)
class RunPage:
    """The run that is described, and its experiment."""

    experiment_id: str
    run_id: str

    def page(self, artifact: str = "") -> str:
        """Address of the run's page, or of one of its files."""
        return run_page(self.experiment_id, self.run_id, artifact)


def describe_run(
    here: RunPage,
    lineage: Node,
    code_identity: Mapping[str, str],
    gate: GateResult,
    registered: RegisteredResult | None,
    stages: Sequence[StageResult],
    nested: Mapping[str, Nested],
) -> str:
    """Markdown: verdict and version, where to look, source and data with licences, who made each artifact."""
    verdict = "no gate was set" if not gate.checks else f"the gate {'' if gate.passed else 'not '}passed"
    version = "nothing was registered"
    if registered is not None:
        page = model_page(registered.name, registered.version)
        version = f"registered as {link(f'{registered.name} version {registered.version}', page)}"
    commit = code_identity.get("commit")
    dirty = f" with {link('uncommitted changes', here.page(PATCH))}"
    by = f"resprout {code(code_identity['resprout'])}" + (
        f", commit {code(commit[:SHORT])}{dirty if code_identity.get('dirty') == 'true' else ''}"
        if commit
        else ""
    )
    lines = [
        # MLflow folds what follows the first lines, and links in the fold cannot be clicked.
        f"A compression run: {verdict}, {version}. See the {link('report', here.page(REPORT))}, the "
        f"{link('pruning plan', here.page(PLAN))} and the {link('config', here.page(CONFIG))}.",
        "",
        f"- Made by {by}",
        *_sources(lineage),
    ]
    reference = registered and f"models:/{registered.name}/{registered.version}"
    if reference:
        verbs = ("verify", "lineage", "reproduce")
        lines.append(f"- Check it by {', '.join(code(f'resprout {verb} {reference}') for verb in verbs)}")
    lines += ["- Stages, by the run of each:", *(f"    - {line}" for line in _stages(here, stages, nested))]
    return fitting(lines)


def describe_version(here: RunPage, name: str, summary: str) -> str:
    """Markdown: the run behind a version and its report and plan, then the `summary` of the report."""
    leads = (
        f"Made by the run {link(name, here.page())}: see its {link('report', here.page(REPORT))}, its "
        f"{link('pruning plan', here.page(PLAN))} and its {link('config', here.page(CONFIG))}."
    )
    return fitting([leads, "", *summary.splitlines()])


def describe_model(name: str) -> str:
    """Markdown: what the versions of a registered model are and how one is checked."""
    check = code(f"resprout verify models:/{name}/VERSION")
    return (
        "Compressed by resprout. The description of each version leads to the run that made it, its tags "
        f"hold the digests behind it, and {check} holds all of that against the artifact store."
    )


def fitting(lines: Sequence[str], limit: int = MAX_CHARS) -> str:
    """As many whole lines as MLflow keeps; where some are left out, the last line says so."""
    text = "\n".join(lines)
    if len(text) <= limit:
        return text
    left = "\n\n(cut here: MLflow keeps no more)"
    kept = [*lines]
    while kept and len("\n".join(kept)) + len(left) > limit:
        kept.pop()
    return "\n".join(kept) + left


def _sources(lineage: Node) -> Iterator[str]:
    """A line for each source, the models before the data."""
    brings = {stage.name: stage.brings for stage in ACQUIRING}
    found = [node.record for node in lineage.walk() if node.record.stage in brings]
    for record in sorted(found, key=lambda one: (one.kind != "model", one.stage, one.content)):
        for given, licence in _given(record):
            role = str(record.config.get("role", "model"))
            what = brings[record.stage] if role == "model" else role.capitalize()
            yield (
                f"- {what} {code(given)}, licence {code(licence)}, artifact {code(record.content[:SHORT])}"
            )


def _given(record: Record) -> Iterator[tuple[str, str]]:
    """Address and licence of each source of an acquired artifact."""
    origin = record.origin or {}
    sources = origin.get("sources")
    for one in sources if isinstance(sources, list) else [{**origin, "licence": record.licence}]:
        yield str(one.get("given") or one.get("uri")), str(one.get("licence") or "unknown")


def _stages(here: RunPage, stages: Sequence[StageResult], nested: Mapping[str, Nested]) -> Iterator[str]:
    for stage in stages:
        own = nested.get(stage.name)
        name = link(stage.name, run_page(here.experiment_id, own.run_id)) if own else plain(stage.name)
        made = "found in the cache" if stage.cached else "made here"
        if own and own.maker:
            made = f"made by {link('another run', own.maker)}"
        yield f"{name}: {code(stage.artifact.digest[:SHORT])}, {made}"
