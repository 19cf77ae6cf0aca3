"""`resprout run`: the whole run of a config."""

from __future__ import annotations

import json
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from resprout.configs.infrastructure import without_credentials
from resprout.configs.load import Loaded
from resprout.configs.result import RunResult
from resprout.flows.session import Session
from resprout.tasks.export.format import chats, own_classes, usage

if TYPE_CHECKING:
    from resprout.configs.load import Loaded
    from resprout.configs.result import RunResult
    from resprout.tasks.report.table import Row

WIDTH = 120
"""Columns of the result table where stderr is no terminal."""


def run(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. prune.target.params_ratio=0.8")
    ] = None,
    continue_recovery: Annotated[
        str | None,
        typer.Option(
            help="2x: go on from the finished recovery's last weights to twice its tokens.", metavar="FACTOR"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of stdout: the result as JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
) -> None:
    """Compress a model: from acquiring it to a registered version with its report.

    Finished stages are kept: after a failure, or with one setting changed, the same command goes on from
    there.

    \b
    Examples:
      resprout run configs/quickstart.yaml prune.target.params_ratio=0.85 seed=3
      resprout run configs/quickstart.yaml --json | tail -n 1 | python -m json.tool
      resprout run configs/recover_ladder.yaml --continue-recovery 2x
    """
    began = time.perf_counter()
    result, error = _run(config, overrides or [], continue_recovery, debug, began)
    result.seconds = round(time.perf_counter() - began, 3)
    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
        sys.stdout.flush()
    if error is not None:
        raise error
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _run(
    config: Path, overrides: list[str], continue_recovery: str | None, debug: bool, began: float
) -> tuple[RunResult, BaseException | None]:
    """The result, and the error to end with where the run did not get through."""
    from rich.console import Console

    from resprout.configs.load import load
    from resprout.configs.result import RunResult
    from resprout.flows.check import check
    from resprout.flows.session import end_on_signals

    loaded: Loaded | None = None
    partial = RunResult(status="failed", exit_code=1)
    try:
        loaded = load(config, overrides)
        if continue_recovery is not None:
            from resprout.flows.continue_recovery import continued, require_finished

            loaded, overrides = continued(loaded, overrides, continue_recovery)
        check(loaded)
        from resprout.infra.environment import prepare
        from resprout.infra.imports import without_collector
        from resprout.infra.prefect.home_server import home_server

        prepare(loaded.config.infra, loaded.home, debug)
        if not debug:
            # Deprecations inside the libraries underneath are not the user's to fix.
            warnings.simplefilter("ignore")
        from resprout.flows.session import Session

        session = Session(result=partial)
        end_on_signals(session.interrupt)
        start = time.perf_counter()
        with home_server(loaded.config.infra):
            session.server_start_seconds = time.perf_counter() - start
            if continue_recovery is not None:
                # Not before: it imports Prefect, which reads the server's address once.
                require_finished(loaded)
            start = time.perf_counter()
            with without_collector():
                from resprout.flows.cli.display import display_for
                from resprout.flows.compress import compress_here

            session.imports_seconds = time.perf_counter() - start
            console = Console(stderr=True)
            if not console.is_terminal:
                console = Console(stderr=True, width=WIDTH)
            with display_for(console, loaded.config.infra.logs) as session.display:
                compress_here(loaded, overrides, session)
            partial.seconds = time.perf_counter() - began
            show(session, loaded, console)
        return partial, None
    except (Exception, KeyboardInterrupt) as error:
        partial.fail(error)
        return partial, error


def show(session: Session, loaded: Loaded, console: Console) -> None:
    """Print the end of a run."""
    from resprout.tasks.measure.stage import run_names
    from resprout.tasks.quantize.names import judged
    from resprout.tasks.report.draft import draft_sentence
    from resprout.tasks.report.files import file_rows, further_speeds, note
    from resprout.tasks.report.lost import HEADS, lost_rows
    from resprout.tasks.report.table import comparison, recovery_sentence

    result = session.result
    if result.models is None:
        return
    models = {name: one.metrics for name, one in result.made_models().items()}
    console.print()
    if session.ships is not None and session.ships.larger:
        console.print(session.ships.larger, highlight=False, soft_wrap=True)
    rows = comparison(models, session.source_bytes, session.source_format, session.averaged, session.ships)
    console.print(_table(list(models), rows), highlight=False)
    if "recovered" in models:
        console.print(
            recovery_sentence(models["pruned"], models["recovered"]), highlight=False, soft_wrap=True
        )
    for sentence in session.recovery:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    runs = run_names(loaded.config.measure) if loaded.config.measure is not None else ()
    if result.files:
        files = {name: one.metrics for name, one in result.files.items()}
        heads, lines = file_rows(files, brief=True, runs=runs)
        console.print()
        console.print(_table(list(heads), lines), highlight=False)
        for line in (*(further_speeds(files, runs) if runs else ()), note(files, brief=True)):
            console.print(line, highlight=False, soft_wrap=True)
    if result.draft:
        console.print(draft_sentence(result.draft), highlight=False, soft_wrap=True)
    if session.measured:
        console.print(session.measured, highlight=False, soft_wrap=True)
    of_whom = judged(loaded.config.public()) or [*models][-1]
    if lost := (result.made_models() | result.files)[of_whom].losses:
        console.print()
        console.print(f"lost by {of_whom} against dense, on the same items:", highlight=False)
        console.print(_table(list(HEADS), lost_rows(lost)), highlight=False)
    for sentence in (one for one in (result.selection, *result.selections) if one):
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    for sentence in result.against_fewer_bits:
        console.print(sentence, highlight=False, soft_wrap=True)
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
        checks = "; ".join(
            f"{one.text}{'' if one.passed else ', outside'}{f' ({one.note})' if one.note else ''}"
            for one in result.gate.checks
        )
        of = f" by {loaded.config.gate.of}" if loaded.config.gate.of else ""
        verdict = f"passed{of}" if result.gate.passed else f"not passed{of}, nothing registered"
        lines.append(f"gate: {verdict}; {checks}")
    for one in result.exports:
        state = "verified" if one.verified else "not verified"
        where = _short(Path(one.path)) if one.path else one.uri
        lines.append(f"export: {one.format} {one.bytes / 1e6:.1f} MB {state} at {where}")
    if (needed := own_classes(one.format for one in result.exports)) is not None:
        lines.append(f"note: {needed}")
    if result.registered is not None:
        version = result.registered
        alias = f" (@{version.alias})" if version.alias else ""
        lines.append(f"registered: models:/{version.name}/{version.version}{alias}")
    elif loaded.config.registration is None and result.exports:
        lines.append("not registered: the config has no section register")
    if result.pushed is not None:
        how = "" if result.pushed.changed else ", which held it already"
        lines.append(f"pushed: {result.pushed.to}{how} ({result.pushed.url})")
    if result.sealed:
        by = result.signed_by
        lines.append(f"seal: signed by {by}" if by else "seal: unsigned (infra.proof names no signing key)")
    lines += [f"warning: {one}" for one in (*result.warnings, *remarks)]
    if result.report:
        lines.append(f"report: {_short(Path(result.report))}")
    lines.append(f"MLflow: {_mlflow(loaded)} (run {result.mlflow_run_id}; page: Model training)")
    cached = sum(stage.cached for stage in result.stages)
    if cached == len(result.stages):
        lines.append(f"all {cached} stages were found in the cache; no weight was loaded")
    elif cached:
        lines.append(f"{cached} of {len(result.stages)} stages were found in the cache")
    if result.overhead is not None:
        over, waited = result.overhead, ""
        if over.waiting_seconds >= 0.1:
            waited = f"waiting for another run {over.waiting_seconds:.1f} s, "
        lines.append(
            f"time: {result.seconds:.1f} s, of it {waited}orchestration {over.orchestration_seconds:.1f} "
            f"s, imports {over.imports_seconds:.1f} s, start of Prefect's server "
            f"{over.server_start_seconds:.1f} s"
        )
    if result.exports:
        lines += ["", "load it:", *(f"  {line}" for line in _loading(result, loaded))]
        for one in result.exports[1:]:
            if one.path is not None:
                own = usage(one.format, json.dumps(_short(Path(one.path))), chats(Path(one.path)))
                lines += [f"or {one.format}:", *(f"  {line}" for line in own)]
    return lines


def _loading(result: RunResult, loaded: Loaded) -> list[str]:
    """Lines of Python that load the first export: by its short way, else as MLflow brings it here."""
    first, version = result.exports[0], result.registered
    if first.path is not None:
        return usage(first.format, json.dumps(_short(Path(first.path))), chats(Path(first.path)))
    address = f"models:/{version.name}/{version.version}" if version is not None else first.uri
    return [
        "import mlflow",
        f"mlflow.set_tracking_uri({json.dumps(_tracking_uri(loaded))})",
        f"folder = mlflow.artifacts.download_artifacts({json.dumps(address)})",
        *usage(first.format, "folder", chat=False),
    ]


def _mlflow(loaded: Loaded) -> str:
    """Address of the MLflow server, or the command that opens the local database in a browser."""
    uri = _tracking_uri(loaded)
    if uri.startswith(("http://", "https://")):
        return uri
    return f"{_short(Path(sys.executable).with_name('mlflow'))} ui --backend-store-uri {shlex.quote(uri)}"


def _tracking_uri(loaded: Loaded) -> str:
    own = f"sqlite:///{_short((loaded.home / 'mlflow.db').resolve())}"
    return without_credentials(loaded.config.infra.mlflow.tracking_uri or own)


def _short(path: Path) -> str:
    """The path as seen from the folder the user is in, where it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
