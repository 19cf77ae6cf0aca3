"""`resprout`: one table of verbs, one place where errors become sentences and exit codes."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from resprout.configs.errors import BadInput, ResproutError, StoppedWatching, Terminated
from resprout.flows.cli.supported import caution, refusal

CANCELLED = 130
CANCELLED_SAYS = "cancelled; finished stages are kept, and the same command goes on from there"

VERBS = (
    "init",
    "run",
    "sweep",
    "plan",
    "validate",
    "schema",
    "methods",
    "report",
    "lineage",
    "diff",
    "why",
    "audit",
    "verify",
    "reproduce",
    "export",
    "rows",
    "alias",
    "gc",
    "hold",
    "erase",
    "backup",
    "restore",
    "relocate",
    "sign",
    "triggers",
    "relay",
    "up",
    "deploy",
    "runs",
    "logs",
    "cancel",
    "retry",
)
HELP = {"help_option_names": ["-h", "--help"]}


def build(arguments: list[str]) -> Any:
    """The typer app; of the verb that is called only its module is imported, of none all are (for --help)."""
    import typer

    from resprout.flows.cli.summaries import WholeSummaries

    app = typer.Typer(
        name="resprout",
        cls=WholeSummaries,
        help="Prune a language model and let it grow back, with its whole lineage kept.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    called = [verb for verb in VERBS if verb in arguments[:1]] or VERBS
    for verb in called:
        module = importlib.import_module(f"resprout.flows.cli.{verb}")
        found = getattr(module, verb)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb, context_settings=HELP)(found)
    if len(called) == 1:
        # Typer turns a lone command into the app itself; a callback keeps it a verb.
        app.callback()(lambda: None)
    return app


def main() -> None:
    """Run the command line; exits 0 done, 1 failed, 2 bad input, 3 gate, 4 verification, 130 cancelled.

    A run that SIGTERM or SIGHUP ended exits with 128 + the signal's number, as shells have it.
    """
    if sentence := refusal():
        _say(f"error: {sentence}")
        sys.exit(BadInput.exit_code)
    if sentence := caution():
        _say(f"note: {sentence}")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        build(arguments)(standalone_mode=True)
    except SystemExit as end:
        # Typer turns Ctrl-C, and what is derived from it, into this code and says nothing.
        if end.code == CANCELLED:
            _say(_words(end))
            sys.exit(_signal_code(end))
        raise
    except ResproutError as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say(CANCELLED_SAYS)
        sys.exit(CANCELLED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        _say(f"error: {type(error).__name__}: {text[:400]} (--debug shows where)")
        sys.exit(1)


def _signal_code(end: BaseException) -> int:
    return next((one.exit_code for one in _chain(end) if isinstance(one, Terminated)), CANCELLED)


def _words(end: BaseException) -> str:
    return next((str(one) for one in _chain(end) if isinstance(one, StoppedWatching)), CANCELLED_SAYS)


def _chain(end: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = end
    while cause is not None:
        yield cause
        cause = cause.__context__


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


if __name__ == "__main__":
    main()
