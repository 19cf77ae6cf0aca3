"""`resprout reproduce`: a finished run made again from its record, and held against it."""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resprout.configs.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from resprout.flows.compare_runs import Change, Verdict
    from resprout.flows.recorded_run import RecordedRun
    from resprout.flows.session import Session
    from resprout.flows.workspace import Workspace
    from resprout.infra.store.store import ArtifactStore

REPRODUCED = "reproduced"
"""Folder below the data folder in which runs are made again."""
SERVER = ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")
WIDTH = 120
"""Columns of lines where stderr is no terminal."""


def reproduce(
    reference: Annotated[
        str,
        typer.Argument(help="models:/name/3, models:/name@alias, digest of an export or a report, run id."),
    ],
    into: Annotated[
        Path | None, typer.Option(help="Empty folder to work in; default: a new one in the data folder.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="How far scores may lie apart where the surroundings differ.")
    ] = 0.01,
    device: Annotated[str | None, typer.Option(help="cpu or cuda instead of the recorded one.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code that came with the model, where the run did.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Run config whose infra section to use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The outcome as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the libraries' logs.")] = False,
) -> None:
    """Make a finished run again from its record alone, in a new folder, and compare what each stage makes.

    Model and data come from the artifact store by digest, never from where they first lay. The folder stays.
    Exit code 0 where all digests are equal, or where code, libraries or machine differ and all scores lie
    within the tolerance; 4 where they do not. Timings are not compared.

    \b
    Examples:
      resprout reproduce models:/smollm2-135m-resprout@candidate
      resprout reproduce models:/smollm2-135m-resprout/1 --into again --json
      resprout reproduce models:/smollm2-135m-resprout/1 --device cpu --tolerance 0.02
    """
    from rich.console import Console

    from resprout.configs.errors import BadInput, VerificationFailed

    if device not in (None, "cpu", "cuda"):
        raise BadInput(f"--device is '{device}'; give cpu or cuda")
    if not math.isfinite(tolerance):
        raise BadInput(f"--tolerance is {tolerance}; give a share, as 0.01")
    began = time.perf_counter()
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=WIDTH)
    outside = {name: os.environ.get(name) for name in SERVER}
    from resprout.flows.workspace import named, open_workspace

    workspace = open_workspace(config, reference, read_only=True)
    reference = named(workspace, reference)
    from resprout.flows.compare_runs import changes, judge
    from resprout.flows.recorded_run import hardware, recorded_run

    run = recorded_run(workspace, reference, device)
    elsewhere = changes(run.records, run.device, hardware(workspace.store, run))
    for line in _surroundings(elsewhere):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    # Prefect and its database are those of this command's own environment, not those of the original.
    _restore(outside)
    session, now, folder = _again(run, workspace, into, trust_remote_code, console, debug)
    verdict = judge(run, session.result.stages, workspace.store, now, elsewhere, tolerance)
    if as_json:
        from resprout.flows.audit.render import json_line

        found = {
            "reference": reference,
            "record": run.record_id,
            "folder": str(folder),
            "surroundings": [vars(one) for one in elsewhere],
            "seconds": round(time.perf_counter() - began, 3),
            **verdict.as_dict(),
        }
        typer.echo(json_line(found))
    sentence = f"{reference}: {_sentence(verdict)}; the second run is kept in {folder}"
    if verdict.outcome == "different":
        raise VerificationFailed(sentence)
    if not as_json:
        typer.echo(sentence)


def _again(
    run: RecordedRun, workspace: Workspace, into: Path | None, code: bool, console: Console, debug: bool
) -> tuple[Session, ArtifactStore, Path]:
    """The run made again: its session, its store, and the folder of both."""
    from resprout.configs.infrastructure import InfraConfig, PrefectConfig
    from resprout.flows.cli.reproduce import beside, new_folder
    from resprout.flows.recorded_run import refuse_impossible
    from resprout.infra.environment import prepare

    refuse_impossible(run, workspace.store, beside(into, workspace.home), code)
    folder = new_folder(into, workspace.home)
    console.print(f"working in {folder}", highlight=False, markup=False, soft_wrap=True)
    prepare(InfraConfig(), folder, debug)
    if not debug:
        warnings.simplefilter("ignore")
    from resprout.flows.cli.display import display_for
    from resprout.flows.session import Session, end_on_signals
    from resprout.infra.prefect.home_server import home_server

    session = Session()
    end_on_signals(session.interrupt)
    # No other run comes to this folder, for which its server would be kept.
    alone = InfraConfig(prefect=PrefectConfig(keep_server_seconds=0))
    with home_server(alone), display_for(console, "text") as session.display:
        from resprout.flows.reproduce import run_again

        return session, run_again(run, workspace.store, folder, session), folder


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _surroundings(elsewhere: list[Change]) -> list[str]:
    if not elsewhere:
        return ["code, libraries, machine and device are those of the record"]
    return ["what differs between the record and this machine:", *(f"  {one}" for one in elsewhere)]


def _sentence(verdict: Verdict) -> str:
    """The outcome, and where it is not equality, what differs first and by how much."""
    left = f"not compared, because they hold timings: {', '.join(verdict.not_compared)}"
    if verdict.outcome == "identical":
        return f"reproduced, all {len(verdict.stages)} stages made identical bytes ({left})"
    same = sum(one.same for one in verdict.stages)
    apart = "; ".join(f"{one.path} {one.says}".strip() for one in verdict.differences)
    first = f"{same} of {len(verdict.stages)} stages made identical bytes, the first that differs is "
    first += f"{verdict.first}: {apart}"
    worst = max(verdict.metrics, key=lambda name: verdict.metrics[name], default=None)
    scores = "no score differs"
    if worst is not None:
        scores = f"scores lie at most {100 * verdict.metrics[worst]:.3g} % apart ({worst})"
    bound = f"the tolerance is {100 * verdict.tolerance:.3g} %"
    if verdict.outcome == "within_tolerance":
        return f"reproduced within the tolerance, not byte by byte: {scores}, {bound}; {first} ({left})"
    return f"not reproduced: {first}; {scores}, {bound}"


def beside(into: Path | None, home: Path) -> Path:
    """An existing folder on the disk on which `new_folder` will lie."""
    wanted = into.expanduser().absolute() if into else home.resolve()
    return next(place for place in (wanted, *wanted.parents) if place.is_dir())


def new_folder(into: Path | None, home: Path) -> Path:
    """The empty folder to work in: `into`, else a new one in <home>/reproduced."""
    if into is None:
        place = home.resolve() / REPRODUCED
        try:
            place.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix="", dir=place))
        except OSError as error:
            raise BadInput(
                f"no folder can be made in {place} ({error.strerror}); give one with --into FOLDER"
            ) from None
    folder = into.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder} cannot be used ({error.strerror}); give an empty folder") from None
    if taken:
        raise BadInput(f"{folder} is not empty; give a new or an empty one, so that nothing is found there")
    return folder
