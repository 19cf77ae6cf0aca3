"""`resprout run`: the whole run of a config."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from resprout.configs.load import Loaded
    from resprout.configs.result import RunResult

WIDTH = 120
"""Columns of the result table where stderr is no terminal."""


def run(
    config: Annotated[Path, typer.Argument(help="Run config (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, e.g. prune.target.params_ratio=0.8")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Last line of stdout: the result as JSON.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
) -> None:
    """Compress a model: from acquiring it to a registered version with its report.

    Finished stages are kept: after a failure, or with one setting changed, the same command goes on from
    there.

    \b
    Examples:
      resprout run configs/quickstart.yaml
      resprout run configs/quickstart.yaml prune.target.params_ratio=0.85 seed=3
      resprout run configs/quickstart.yaml --json | tail -n 1 | python -m json.tool
    """
    began = time.perf_counter()
    result, error = _run(config, overrides or [], debug, began)
    result.seconds = round(time.perf_counter() - began, 3)
    if as_json:
        sys.stdout.write(result.model_dump_json() + "\n")
        sys.stdout.flush()
    if error is not None:
        raise error
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _run(
    config: Path, overrides: list[str], debug: bool, began: float
) -> tuple[RunResult, BaseException | None]:
    """The result, and the error to end with where the run did not get through."""
    from rich.console import Console

    from resprout.configs.load import load
    from resprout.configs.result import RunResult
    from resprout.flows.check import check
    from resprout.flows.cli.signals import end_on_signals

    loaded: Loaded | None = None
    partial = RunResult(status="failed", exit_code=1)
    try:
        loaded = load(config, overrides)
        check(loaded)
        from resprout.infra.environment import prepare
        from resprout.infra.home_server import home_server

        prepare(loaded.config.infra, loaded.home, debug)
        if not debug:
            # Deprecations inside the libraries underneath are not the user's to mend.
            warnings.simplefilter("ignore")
        from resprout.flows.session import Session

        session = Session(result=partial)
        end_on_signals(session.interrupt)
        start = time.perf_counter()
        with home_server(loaded.config.infra):
            session.server_start_seconds = time.perf_counter() - start
            start = time.perf_counter()
            from resprout.flows.cli.display import display_for
            from resprout.flows.cli.summary import show
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
