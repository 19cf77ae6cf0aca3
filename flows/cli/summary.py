"""What a person reads when a run ends: the table, the verdict, the version, where to look, and the times."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from resprout.configs.load import Loaded
from resprout.configs.result import RunResult
from resprout.configs.schema import without_credentials
from resprout.flows.session import Session
from resprout.tasks.export.registry import own_classes

if TYPE_CHECKING:
    from resprout.tasks.report.table import Row


def show(session: Session, loaded: Loaded, console: Console) -> None:
    """Print the end of a run."""
    from resprout.tasks.report.table import comparison, recovery_sentence

    result = session.result
    if result.models is None:
        return
    models = {name: one.metrics for name, one in result.made_models().items()}
    console.print()
    rows = comparison(models, session.source_bytes, session.source_format, session.averaged)
    console.print(_table(list(models), rows), highlight=False)
    if "recovered" in models:
        console.print(
            recovery_sentence(models["pruned"], models["recovered"]), highlight=False, soft_wrap=True
        )
    for line in _lines(result, loaded, session.remarks):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(names: list[str], rows: list[Row]) -> Table:
    # Names of metrics are one word, which is broken before it is cut.
    table = Table(Column("", overflow="fold"), box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.label, *row.cells)
    return table


def _lines(result: RunResult, loaded: Loaded, remarks: list[str]) -> list[str]:
    lines = ["", f"method: {result.method}"]
    if loaded.config.gate is None:
        lines.append("no gate was set: nothing was held against the dense model")
    elif result.gate is not None:
        checks = ", ".join(
            f"{one.name} {one.value:.4f} (bound {one.bound:g}{'' if one.passed else ', outside'})"
            for one in result.gate.checks
        )
        verdict = "passed" if result.gate.passed else "not passed, nothing registered"
        lines.append(f"gate: {verdict}; {checks}")
    for one in result.exports:
        state = "verified" if one.verified else "not verified"
        lines.append(f"export: {one.format} {one.bytes / 1e6:.1f} MB {state} at {one.uri}")
    if (needed := own_classes(one.format for one in result.exports)) is not None:
        lines.append(f"note: {needed}")
    if result.registered is not None:
        version = result.registered
        alias = f" (@{version.alias})" if version.alias else ""
        lines.append(f"registered: models:/{version.name}/{version.version}{alias}")
    if result.sealed:
        by = result.signed_by
        lines.append(f"seal: signed by {by}" if by else "seal: unsigned (infra.proof names no signing key)")
    lines += [f"warning: {one}" for one in (*result.warnings, *remarks)]
    if result.report:
        lines.append(f"report: {_short(Path(result.report))}")
    lines.append(f"MLflow: {_mlflow(loaded)} (run {result.mlflow_run_id})")
    cached = sum(stage.cached for stage in result.stages)
    if cached == len(result.stages):
        lines.append(f"all {cached} stages were found in the cache; no weight was loaded")
    elif cached:
        lines.append(f"{cached} of {len(result.stages)} stages were found in the cache")
    if result.overhead is not None:
        lines.append(
            f"time: {result.seconds:.1f} s, of it orchestration {result.overhead.orchestration_seconds:.1f} "
            f"s, imports {result.overhead.imports_seconds:.1f} s, start of Prefect's server "
            f"{result.overhead.server_start_seconds:.1f} s"
        )
    return lines


def _mlflow(loaded: Loaded) -> str:
    """Address of the MLflow server, or the command that opens the local database in a browser."""
    uri = loaded.config.infra.mlflow.tracking_uri
    if uri is not None and uri.startswith(("http://", "https://")):
        return without_credentials(uri)
    uri = uri or f"sqlite:///{_short((loaded.home / 'mlflow.db').resolve())}"
    return f"{_short(Path(sys.executable).with_name('mlflow'))} ui --backend-store-uri {shlex.quote(uri)}"


def _short(path: Path) -> str:
    """The path as seen from the folder the user is in, where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
