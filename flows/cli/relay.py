"""`resprout relay`: the relay in this process, until a signal ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def relay(
    config: Annotated[
        Path | None,
        typer.Option(help="Config with infra (YAML); default: RESPROUT_INFRA__* of the environment."),
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Compare the model registry with the rules, and start a run for each version that one is for.

    It looks every infra.relay.poll_seconds, and at once where MLflow's webhook names a model; it ends on
    SIGTERM or Ctrl-C. Rules are read again when their file changes. Health: /health. Prometheus: /metrics.

    \b
    Examples:
      resprout relay --config infra.yaml
      resprout relay --config infra.yaml --debug
      resprout relay
    """
    from resprout.configs.load import load_infra
    from resprout.infra import logs
    from resprout.infra.environment import prepare

    infra, home = load_infra(config)
    prepare(infra, home, debug)
    logs.configure(infra.logs)
    # Prefect and MLflow read their environment when they are imported.
    from resprout.infra.triggers.serve import serve

    serve(infra, home)
