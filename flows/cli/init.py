"""`resprout init`: a first config for an own model and own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[
        str, typer.Argument(help="Folder, GGUF file, hf://org/name, models:/name@alias, s3:// or package://.")
    ],
    text: Annotated[
        str | None, typer.Option(help="Text to calibrate on and, a part held out, to evaluate on.")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Rows of tasks and answers that recovery trains on; may be given several times."),
    ] = None,
    goal: Annotated[str | None, typer.Option(help='"20 % smaller", 250MB or 1.3x (faster).')] = None,
    output: Annotated[Path, typer.Option(help="Config to write.")] = Path("my.yaml"),
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickled weights too: model.allow_pickle.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the config.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Write a first config for a model and your files.

    Looks at the model's header and at the first rows of the files, but at no weights, and says what it chose
    and why. The config is checked as `resprout validate` does before it is written.

    \b
    Examples:
      resprout init path/to/model --text corpus.jsonl
      resprout init hf://org/name --text corpus.txt --pool chats.jsonl --pool "pairs/train-*.parquet"
      resprout init models:/name@alias --text corpus.parquet --goal 1.3x --output faster.yaml
    """
    from resprout.configs.errors import BadInput
    from resprout.flows.first_config.config import draft
    from resprout.flows.first_config.goal import parse_goal

    if output.exists() and not force:
        raise BadInput(f"{output} is there already; give --output another name, or --force to overwrite it")
    if not output.resolve().parent.is_dir():
        raise BadInput(
            f"there is no folder {output.resolve().parent} for {output}; make it, or give another --output"
        )
    asked = parse_goal(goal) if goal is not None else None
    made = draft(model, text, pool or (), asked, output, allow_pickle)
    output.write_text(made.text, encoding="utf-8")
    for section in made.sections:
        for line in section.why:
            typer.echo(f"{section.name}: {line}")
    typer.echo(f"wrote {output}")
    if made.missing:
        raise BadInput(
            f"{output} lacks text to evaluate with; run init again with --text FILE --force, or fill in "
            f"{made.missing}"
        )
    typer.echo(f"next: resprout plan {output}, then resprout run {output}")
